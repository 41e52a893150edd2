"""What every family's file says of its pipeline, held against the pipeline itself."""

import json
from functools import partial
from pathlib import Path

import calflops
import numpy as np
import pytest
import torch
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.cli.main import run
from tgate_batch.config import Model, Sampling
from tgate_batch.errors import UserError
from tgate_batch.gate import GatePlan, denoiser_of, gated
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline, resolved_dtype
from tgate_batch.models.files import variant_of
from tgate_batch.models.macs.arm import count_parts, find_architecture, macs_of
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.records import Prompt

LIKE_SDXL = ["playground25", "ssd_1b", "vega", "kolors"]
GATED = [*LIKE_SDXL, "sana"]
NAMES = [*GATED, "wan21"]
PROMPTS = [Prompt("a", "a red cat"), Prompt("b", "two dogs on a boat, in the evening")]
SEEDS = [3, 5]
STEPS = 4


@pytest.fixture
def runners(tiny_runner):
    """``runners(name)`` is a family's tiny model with the steps of this module."""
    return partial(tiny_runner, steps=STEPS)


def whole_call(runner: PipelineRunner, texts: list[str], **more):
    """What the pipeline's own call draws of these prompts, its other defaults included."""
    more |= {name: value for name, value in runner.family.call.items() if name != "negative_prompt"}
    return runner.pipeline(
        prompt=texts,
        guidance_scale=runner.sampling.guidance_scale,
        num_inference_steps=STEPS,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        **more,
    )[0]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma", *NAMES])
def test_three_parts_draw_what_the_pipelines_own_call_draws(runners, name):
    runner = runners(name)
    latents = runner.denoise(runner.encode(PROMPTS), SEEDS)
    texts = [prompt.text for prompt in PROMPTS]
    whole = whole_call(runner, texts, output_type="latent")
    assert whole.std() > 0.1
    assert (latents - whole).abs().max() < 1e-4 * whole.abs().max()
    pixels = runner.decode(latents)
    shown = np.round(np.asarray(whole_call(runner, texts, output_type="np")) * 255)
    assert pixels.values.shape == shown.shape
    assert np.abs(pixels.values - shown).max() <= 1


@pytest.mark.filterwarnings("ignore::tgate_batch.gate.GateNotReached")
@pytest.mark.parametrize("name", GATED)
def test_a_plan_that_never_gates_draws_the_same_bits_and_another_does_not(runners, name):
    runner = runners(name)
    conditions = runner.encode(PROMPTS)
    plain = runner.denoise(conditions, SEEDS)
    drawn = {}
    for gate_step in (1, STEPS):
        with gated(runner.pipeline, GatePlan(gate_step)):
            drawn[gate_step] = runner.denoise(conditions, SEEDS)
    assert drawn[STEPS].equal(plain)
    assert (drawn[1] - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "down", "middle", "up"),
    [
        ("playground25", 2 + 2, 2, 2 + 2 + 2),
        ("kolors", 2 + 2, 2, 2 + 2 + 2),
        ("ssd_1b", 1 + 2, 0, 1 + 1 + 2),
        ("vega", 1 + 1, 0, 1 + 1 + 1),
    ],
)
def test_cross_attention_layers_stand_where_the_original_has_them(runners, name, down, middle, up):
    """Down, middle and up; the tiny models keep which attention has more layers than others."""
    unet = runners(name).pipeline.unet
    parts = unet.down_blocks, unet.mid_block, unet.up_blocks
    found = [
        sum(getattr(module, "is_cross_attention", False) for module in part.modules())
        for part in parts
    ]
    assert found == [down, middle, up]


class Flat(torch.nn.Module):
    """A denoiser whose arguments are tensors alone, as calflops takes them."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, **inputs):
        conditions = {k: inputs.pop(k) for k in ("text_embeds", "time_ids") if k in inputs}
        if conditions:
            inputs["added_cond_kwargs"] = conditions
        return self.denoiser(**inputs)


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_those_that_calflops_sees_in_the_running_denoiser(runners, name, tmp_path):
    denoiser, tokens = denoiser_of(runners(name).pipeline), runners(name).family.tokens
    family, architecture = catalogue.family_of(name), catalogue.entry(name).architecture
    side = 64 // (32 if name == "sana" else 8)
    shapes = family.inputs(
        denoiser.config, 2, tokens(catalogue.entry(name), architecture.encoders), side, side
    )
    flat = shapes | shapes.pop("added_cond_kwargs", {})
    inputs = {key: torch.ones(value.shape) for key, value in flat.items()}
    _, macs, _ = calflops.calculate_flops(
        Flat(denoiser), kwargs=inputs, print_results=False, output_as_string=False
    )
    path = str(catalogue.save_tiny(name, tmp_path))
    counted = macs_of(name, path, steps=3, guidance_scale=4.5, height=64, width=64)
    assert counted.per_image == 3 * macs > 0


@pytest.mark.parametrize(
    ("name", "billions", "half_of_the_last_digit"),
    [
        ("playground25", 2.567, 0.0005),  # SDXL's: the same architecture, says the card
        ("ssd_1b", 2.66 / 2, 0.0025),  # GB of its float16 file
        ("vega", 0.74, 0.0055),  # arXiv 2401.02677; its authors round down
        ("kolors", 2.58, 0.005),
        ("sana", 3.21 / 2, 0.0025),  # GB of its float16 file
        ("wan21", 2.84 / 2, 0.0025),  # GB of its float16 file
    ],
)
def test_denoisers_have_the_published_number_of_parameters(name, billions, half_of_the_last_digit):
    counted = macs_of(name, steps=1, guidance_scale=1.0).params / 1e9
    assert abs(counted - billions) < half_of_the_last_digit


@pytest.mark.parametrize(
    ("name", "part", "billions", "half_of_the_last_digit"),
    [
        ("kolors", "text_encoder", 6.24, 0.005),  # ChatGLM3-6B
        ("sana", "text_encoder", 2.61, 0.005),  # Gemma 2 2B
        ("sana", "vae", 1.25 / 4, 0.00125),  # GB of its float32 file
        ("wan21", "text_encoder", 5.68, 0.005),  # UMT5-XXL's encoder
        ("wan21", "vae", 0.51 / 4, 0.00125),  # GB of its float32 file
    ],
)
def test_other_parts_have_theirs(name, part, billions, half_of_the_last_digit):
    family, architecture = catalogue.family_of(name), find_architecture(name)
    macs, params = count_parts(family, architecture, guided=True, height=64, width=64)[part]
    assert macs.macs > 0
    assert abs(params / 1e9 - billions) < half_of_the_last_digit


def test_half_precision_is_bfloat16_where_a_model_was_made_in_it():
    halves = {name: resolved_dtype(Model(name=name), "cuda") for name in NAMES}
    in_bfloat16 = {name for name, half in halves.items() if half == "bfloat16"}
    assert in_bfloat16 == {"sana", "wan21"}
    assert variant_of(Model(name="kolors"), "float16") == "fp16"
    assert variant_of(Model(name="sana"), "bfloat16") is None


def test_wans_autoencoder_computes_in_float32_beside_a_denoiser_in_bfloat16(tmp_path):
    model = Model(name="wan21", path=str(catalogue.save_tiny("wan21", tmp_path)))
    sampling = catalogue.resolve("wan21", Sampling(steps=1, height=32, width=32))
    pipeline = load_pipeline(model, sampling, "cpu", "bfloat16")
    assert pipeline.vae.dtype == torch.float32
    assert pipeline.text_encoder.dtype == pipeline.transformer.dtype == torch.bfloat16
    runner = PipelineRunner(pipeline, catalogue.family_of("wan21"), sampling)
    pixels = runner.decode(runner.denoise(runner.encode(PROMPTS[:1]), SEEDS[:1]))
    assert pixels.values.shape == (1, 81, 32, 32, 3)
    assert pixels.frames_per_second == 16


@pytest.mark.parametrize("name", GATED)
def test_the_image_job_draws_one_picture(name, tmp_path):
    folder = catalogue.save_tiny(name, tmp_path / "model")
    size = ["--height", "64", "--width", "64", "--inference_step", "2", "--gate_step", "1"]
    where = ["--path", str(folder), "--saved_path", str(tmp_path)]
    run(["image", "--model", name, "--prompt", "a cat", *where, *size])
    with Image.open(tmp_path / "test.png") as picture:
        assert picture.size == (64, 64)


def test_a_video_of_a_text_needs_a_prompt_and_no_picture(tmp_path):
    with pytest.raises(UserError, match="--model wan21 needs a prompt"):
        run(["image", "--model", "wan21", "--image", "x.png", "--saved_path", str(tmp_path)])
    asked = ["--prompt", "a cat", "--image", "x.png", "--saved_path", str(tmp_path)]
    with pytest.raises(UserError, match=r"--model sd15 takes no --image\. Fix"):
        run(["image", "--model", "sd15", *asked])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_a_new_family_ends_in_a_report_with_its_macs(name, settings, tmp_path):
    folder = str(catalogue.save_tiny(name, tmp_path / "model"))
    arms = {"baseline": {}} | ({"tgate": {"gate_step": 1}} if name in GATED else {})
    sampling = {"steps": 2, "height": 64, "width": 64, "batch_size": 2}
    whole = settings | {
        "models": [{"name": name, "path": folder}],
        "prompts": settings["prompts"] | {"limit": 2},
        "sampling": sampling,
        "arms": arms,
        "workers": {"executor": "local"},
        "score": {"reference": None},
    }
    assert workflow.render(config.parse(whole)) == 0
    report = Path(whole["output"], "report", "report.json")
    found = json.loads(report.read_text())["arms"]
    assert [(arm["arm"], arm["images"], arm["errors"]) for arm in found] == [
        (arm, 2, 0) for arm in arms
    ]
    counted = macs_of(name, folder, steps=2, guidance_scale=4.5, height=64, width=64)
    assert found[0]["macs_per_image"] == counted.per_image
    assert all(arm["macs_per_image"] < counted.per_image for arm in found[1:])


def test_a_video_is_decoded_as_it_is_alone_whatever_stands_beside_it():
    """The pipeline decodes frames by eight: of several videos it would mix their frames."""
    pipe, family = catalogue.tiny("svd"), catalogue.family_of("svd")
    videos = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = family.decode(pipe, videos)
        alone = [family.decode(pipe, video) for video in videos.split(1)]
    assert torch.equal(together, torch.cat(alone))
