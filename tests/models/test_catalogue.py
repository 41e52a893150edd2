"""The catalogue is put together from the families' files; a new family is one more file."""

import subprocess
import sys

import pytest

from tgate_batch.config import OWN_SCHEDULER, Arm, Model, Sampling
from tgate_batch.errors import UserError
from tgate_batch.gate import gated
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.macs.arm import macs_of_arm
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.records import Prompt

# A pipeline class of its own, and a denoiser with one attention layer in its middle alone.
TOY = """
import diffusers
import transformers

from tgate_batch.models import sd, tiny
from tgate_batch.models.family import Entry, Family


class ToyPipeline(diffusers.StableDiffusionPipeline):
    pass


def make():
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=tiny.WIDTH,
    )
    return ToyPipeline(
        unet=unet,
        vae=tiny.vae(),
        text_encoder=transformers.CLIPTextModel(tiny.clip_config()),
        tokenizer=tiny.clip_tokenizer(),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def row(name):
    return Entry(
        name,
        f"{__name__}.ToyPipeline",
        "nobody/toy",
        steps=4,
        guidance_scale=3.0,
        height=64,
        width=64,
        tiny=make,
    )


FAMILY = Family(
    entries=(row("toy"),),
    denoiser="unet",
    inputs=sd.unet_inputs,
    encoded={"prompt_embeds": sd.caption, "negative_prompt_embeds": sd.caption},
)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(name, source)`` writes a module; the catalogue is as before after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalogue, "CATALOGUE", dict(catalogue.CATALOGUE))
    monkeypatch.setattr(catalogue, "_FAMILIES", dict(catalogue._FAMILIES))
    written = []

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_toy_family_of_one_file_is_made_loaded_rendered_and_counted(module, tmp_path):
    catalogue.register(module("toy_family", TOY))
    model = Model(name="toy", path=str(catalogue.save_tiny("toy", tmp_path / "toy")))
    sampling = catalogue.resolve("toy", Sampling())
    assert (sampling.steps, sampling.height, sampling.scheduler) == (4, 64, OWN_SCHEDULER)

    pipeline = load_pipeline(model, sampling, "cpu")
    assert type(pipeline).__name__ == "ToyPipeline"
    runner = PipelineRunner(pipeline, catalogue.family_of("toy"), sampling)
    prompts = [Prompt("a", "a cat"), Prompt("b", "a dog")]
    plan = Arm(gate_step=2)
    with gated(pipeline, plan.plan, guided=runner.guided):
        pixels = runner.decode(runner.denoise(runner.encode(prompts), [0, 1]))
    assert pixels.values.shape == (2, 64, 64, 3)
    assert pixels.finite.all()

    plain, v1 = (macs_of_arm(model, arm, sampling).per_image for arm in (Arm(), plan))
    # After the gate one branch of two steps runs, without cross-attention: 4x4 places of 8
    # channels (query, output) attend to 77 tokens of 32 (key, value).
    cross = 2 * 16 * 8 * 8 + 2 * 77 * 32 * 8
    assert v1 == plain // 2 + 2 * (plain // 8 - cross)


def test_registering_a_module_again_changes_nothing(module):
    name = module("toy_family", TOY)
    catalogue.register(name)
    before = list(catalogue.CATALOGUE.items())
    catalogue.register(name)
    catalogue.register("tgate_batch.models.sd")
    assert list(catalogue.CATALOGUE.items()) == before
    assert list(catalogue.CATALOGUE)[-1] == "toy"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "'broken' cannot be imported: No module named 'broken'"),
        ("import no_such_library", "'broken' cannot be imported: No module named 'no_such_"),
        ("", "'broken' has no FAMILY"),
        ("FAMILY = 1", "'broken' has no FAMILY"),
        (TOY.replace('row("toy")', 'row("toy"), row("sd15")'), "the name 'sd15' is taken"),
        (TOY.replace('row("toy")', 'row("toy"), row("toy")'), "the name 'toy' is taken"),
    ],
)
def test_module_that_cannot_join_is_told_and_adds_nothing(module, source, said):
    if source is not None:
        module("broken", source)
    before = list(catalogue.CATALOGUE)
    with pytest.raises(UserError, match=said) as told:
        catalogue.register("broken")
    assert "\n" not in str(told.value)
    assert list(catalogue.CATALOGUE) == before


def test_every_row_is_of_the_family_that_lists_it():
    for name, row in catalogue.CATALOGUE.items():
        assert row in catalogue.family_of(name).entries
        assert row.name == name
    drawn = {name: catalogue.family_of(name).draws for name in catalogue.CATALOGUE}
    assert [name for name, what in drawn.items() if what == "video"] == ["svd", "wan21"]


def test_row_without_a_tiny_model_is_told_which_have_one():
    with pytest.raises(UserError, match="no tiny model of 'demo'; choose one of: sd15, sd21"):
        catalogue.tiny("demo")


def test_tiny_model_is_the_same_every_time():
    first, second = (catalogue.tiny("sd15").unet.state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


def test_scheduler_of_the_config_comes_before_the_documented_one():
    assert catalogue.resolve("sd15", Sampling()).scheduler == "DPMSolverMultistepScheduler"
    chosen = catalogue.resolve("sd15", Sampling(scheduler="DDIMScheduler"))
    assert chosen.scheduler == "DDIMScheduler"
    assert catalogue.resolve("svd", Sampling()).scheduler == OWN_SCHEDULER


def test_config_is_checked_without_torch():
    code = (
        "import sys; from tgate_batch import config; "
        "from tgate_batch.models import catalogue, checkpoint, fingerprint; "
        "catalogue.resolve('sdxl', config.Sampling()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
