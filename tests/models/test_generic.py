"""Pipelines without a family file: every class of diffusers is rendered or refused by name."""

import inspect
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.config import Arm, Images, Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.architecture import class_names
from tgate_batch.models.generic import calls, classes, tiny
from tgate_batch.models.generic import family as generic
from tgate_batch.models.generic.runner import GenericRunner
from tgate_batch.records import Prompt, Shard
from tgate_batch.render.renderer import Renderer

pytestmark = pytest.mark.usefixtures("one_thread", "few_frames")

ROOT = Path(__file__).parents[2]
STEPS = 3
PROMPTS = (
    Prompt("a", "a red cat"),
    Prompt("b", "two dogs on a boat, in the evening"),
    Prompt("c", "a blue cat"),
)
FAST = (
    *("FluxPipeline", "StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline"),
    *("CogView4Pipeline", "HunyuanDiTPipeline"),
)
SIDES = dict.fromkeys(("Kandinsky5T2IPipeline", "HiDreamImagePipeline"), 1024)  # no others
ONE_BRANCH = {  # distilled: the scale is an input of the denoiser, or there is none
    "Flux2KleinKVPipeline",
    "HunyuanVideoPipeline",
    "LatentConsistencyModelPipeline",
}
# Motion layers compute some rows of a batch in another order than others.
ROUNDED = {"AnimateDiffPipeline", "AnimateDiffPAGPipeline", "AnimateDiffSDXLPipeline"}
CLOSE = {"Kandinsky3Pipeline"}  # its kernels round a batch of one branch differently
HAS_FAMILY = {row.pipeline for row in catalogue.CATALOGUE.values()} - {
    row.pipeline for row in generic.FAMILY.entries
}


def slow_but(fast, names):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


BUILT = slow_but(FAST, tiny.PIPELINES)
GUIDED = slow_but(
    FAST,
    [
        name
        for name in tiny.PIPELINES
        if name not in ONE_BRANCH and classes.interval_refusal(name) is None
    ],
)


@pytest.fixture
def few_frames(monkeypatch):
    """Videos of a few frames: the loop is the same, and the decoder has less to do."""

    def facts_of(name):
        facts, takes = classes.facts_of(name), classes.call_parameters(name)
        frames = {"num_frames": 9, "video_length": 16, "frames": 9}
        few = {key: frames[key] for key in frames if key in takes}
        return replace(facts, call={**facts.call, **few})

    monkeypatch.setattr(calls, "facts_of", facts_of)


def pipeline(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = tiny.build(name)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    made.set_progress_bar_config(disable=True)
    return made


def runner(name, **sampling):
    row, family = generic.row_of(name, "mine", "/model")
    side = SIDES.get(name, 64)
    chosen = {"steps": STEPS, "guidance_scale": 4.0, "height": side, "width": side}
    made = catalogue.documented_sampling(row, Sampling(**{**chosen, "batch_size": 2, **sampling}))
    return GenericRunner(pipeline(name), family, made)


def images(made, prompts=PROMPTS, arm=None):
    """Prompt id -> pixels, as a shard's batches give them."""
    renderer = Renderer(made, Images(format="png"), worker="test")
    rows = [row() for row in list(renderer.render(Shard(0, prompts), "arm", arm or Arm()))]
    assert {row.error for row in rows} == {None}
    return {row.prompt_id: row.image for row in rows}


def levels_apart(one, two):
    """The largest difference of two PNG files, in levels of 255."""
    first, second = (np.asarray(Image.open(io.BytesIO(each))).astype(int) for each in (one, two))
    return np.abs(first - second).max()


def test_every_class_that_takes_a_prompt_is_rendered_refused_or_listed_as_not_tried():
    """A class of a newer diffusers fails here until it has a tiny pipeline or a reason."""
    names = {name for name in class_names("pipelines") if name.endswith("Pipeline")}
    open_ = {name for name in names if classes.refusal(name) is None}
    assert open_ - set(tiny.PIPELINES) - HAS_FAMILY == set(classes.NOT_TRIED)
    assert set(tiny.PIPELINES) <= open_


def test_more_than_forty_classes_without_a_family_file_have_a_tiny_pipeline():
    assert len(set(tiny.PIPELINES) - HAS_FAMILY) > 40


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("FluxImg2ImgPipeline", "it needs an image"),
        ("FluxFillPipeline", "it needs an image and a mask"),
        ("FluxControlNetPipeline", "it needs a control image"),
        ("AudioLDM2Pipeline", "it makes sound"),
        ("StableCascadePriorPipeline", "it is one of two stages"),
        ("NoSuchPipeline", "diffusers has no such pipeline"),
        ("DDPMPipeline", "it takes no prompt"),
        (None, "it names no class"),
    ],
)
def test_class_that_needs_more_than_a_prompt_is_refused_with_its_reason(name, reason):
    with pytest.raises(UserError, match=re.escape(reason)) as refused:
        generic.row_of(name, "mine", "/model")
    assert "\n" not in str(refused.value)


def test_every_reason_is_in_the_document():
    text = " ".join((ROOT / "docs" / "models.md").read_text(encoding="utf-8").split())
    names = {name for name in class_names("pipelines") if name.endswith("Pipeline")}
    reasons = {classes.refusal(name) for name in names} - {None}
    plain = {reason for reason in reasons if "cannot be imported" not in reason}
    missing = {
        reason
        for reason in plain
        if (reason not in text and not reason.startswith("it needs ")) or "guardrail" in reason
        if reason not in text
    }
    assert missing == set()
    assert set(classes.NOT_TRIED) <= set(re.findall(r"\w+", text))
    assert {name for name, facts in classes.FACTS.items() if facts.alone} <= set(
        re.findall(r"\w+", text)
    )


@pytest.mark.parametrize("name", BUILT)
def test_a_run_of_any_class_ends_in_a_report_with_its_macs(name, settings, tmp_path):
    made = pipeline(name)
    made.save_pretrained(tmp_path / "model", safe_serialization=True)
    side = SIDES.get(name, 64)
    arms = {"baseline": {}, "fewer": {"steps": STEPS - 1}}
    if name not in ONE_BRANCH and classes.interval_refusal(name) is None:
        arms["guidance"] = {"guidance_until": 2}
    whole = settings | {
        "models": [{"name": "mine", "path": str(tmp_path / "model")}],
        "prompts": settings["prompts"] | {"limit": 2},
        "sampling": {
            "steps": STEPS,
            "guidance_scale": 4.0,
            "height": side,
            "width": side,
            "batch_size": 2,
        },
        "arms": arms,
        "workers": {"executor": "local"},
        "score": {"reference": None},
    }
    assert workflow.render(config.parse(whole)) == 0
    report = Path(whole["output"], "report", "report.json")
    rows = {row["arm"]: row for row in json.loads(report.read_text())["arms"]}
    assert {(arm, row["images"], row["errors"]) for arm, row in rows.items()} == {
        (arm, 2, 0) for arm in arms
    }
    full = rows["baseline"]
    for arm in set(arms) - {"baseline"}:
        assert 0 < rows[arm]["macs_per_image"] < full["macs_per_image"]
    assert full["macs_per_image"] <= full["macs_per_image_with_attention"]


@pytest.mark.parametrize("name", BUILT)
def test_image_is_the_same_alone_among_others_and_in_another_shard(name):
    made = runner(name)
    together = images(made)
    assert len(set(together.values())) == len(PROMPTS)
    alone, reversed_ = images(made, PROMPTS[1:2]), images(made, PROMPTS[::-1])
    if name in ROUNDED:
        assert levels_apart(alone["b"], together["b"]) <= 1
        assert all(levels_apart(reversed_[key], together[key]) <= 1 for key in together)
    else:
        assert alone["b"] == together["b"]
        assert reversed_ == together


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_dropped_at_every_step_is_the_unguided_call_bit_for_bit(name):
    made = runner(name)
    neutral = made._call.facts.neutral_scale
    conditions = made.encode([PROMPTS[0]] * 2)
    guided = made.denoise(conditions, [3, 4])
    with made.applying(Arm(guidance_from=STEPS)):
        dropped = made.denoise(conditions, [3, 4])
    assert not torch.equal(dropped, guided)
    if neutral is not None:
        unguided = runner(name, guidance_scale=neutral)
        plain = unguided.denoise(unguided.encode([PROMPTS[0]] * 2), [3, 4])
        assert (dropped - plain).abs().max() <= (1e-5 if name in CLOSE else 0)


@pytest.mark.parametrize("name", slow_but(FAST[:1], sorted(ONE_BRANCH & set(tiny.PIPELINES))))
def test_distilled_class_is_said_to_have_no_guidance(name):
    made = runner(name)
    with (
        pytest.raises(UserError, match="it runs one branch, so there is no guidance to drop"),
        made.applying(Arm(guidance_until=2)),
    ):
        pass


def test_arms_that_a_class_cannot_follow_are_refused_before_anything_is_rendered(
    settings, tmp_path
):
    pipeline("FluxPipeline").save_pretrained(tmp_path / "model", safe_serialization=True)
    whole = settings | {
        "models": [{"name": "mine", "path": str(tmp_path / "model")}],
        "arms": {"baseline": {}, "gate": {"gate_step": 2}},
    }
    with pytest.raises(UserError, match=r"arms\.gate with mine: of all plans, a FluxPipeline"):
        workflow.render(config.parse(whole))
    assert classes.interval_refusal("StableDiffusionXLPAGPipeline") is not None


# ---- By hand: the same arguments, in plain diffusers

ARGUMENTS = {
    "FluxPipeline": {"true_cfg_scale": 4.0, "negative_prompt": [""]},
    "StableDiffusion3Pipeline": {"guidance_scale": 4.0},
    "QwenImagePipeline": {"true_cfg_scale": 4.0, "negative_prompt": [""]},
    "ZImagePipeline": {"guidance_scale": 4.0},
    "CogView4Pipeline": {"guidance_scale": 4.0},
    "HunyuanDiTPipeline": {"guidance_scale": 4.0, "use_resolution_binning": False},
    "ChromaPipeline": {"guidance_scale": 4.0},
    "AuraFlowPipeline": {"guidance_scale": 4.0},
    "BriaPipeline": {"guidance_scale": 4.0},
    "CogView3PlusPipeline": {"guidance_scale": 4.0},
    "OvisImagePipeline": {"guidance_scale": 4.0},
    "Lumina2Pipeline": {"guidance_scale": 4.0},
}


@pytest.mark.parametrize("name", slow_but(FAST, ARGUMENTS))
def test_a_plan_that_never_acts_is_plain_diffusers_called_by_hand(name):
    """One row: plain diffusers encodes the prompts of a batch together, which rounds otherwise."""
    made = runner(name)
    with made.applying(Arm(guidance_until=STEPS)):
        found = made.decode(made.denoise(made.encode([PROMPTS[1]]), [3])).values
    plain = pipeline(name)
    by_hand = plain(
        prompt=[PROMPTS[1].text],
        height=64,
        width=64,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(3)],
        output_type="np",
        **ARGUMENTS[name],
    ).images
    assert np.array_equal(found, np.round(np.asarray(by_hand) * 255).astype(np.uint8))


def test_the_callers_prompts_stay_as_they_are():
    """Z-Image writes a chat template into the list that its call gets."""
    made = runner("ZImagePipeline")
    first = images(made)
    assert images(made) == first


def test_a_decoder_gets_as_many_rows_as_the_config_says():
    made = runner("FluxPipeline")
    whole = made.denoise(conditions := made.encode([PROMPTS[0]] * 3), [1, 2, 3])
    made.engine = made.engine.model_copy(update={"decode_batch_size": 2})
    sizes = []
    own = made.pipeline.vae.decode

    def decode(latents, *args, **kwargs):
        sizes.append(len(latents))
        return own(latents, *args, **kwargs)

    made.pipeline.vae.decode = decode
    assert torch.equal(made.denoise(conditions, [1, 2, 3]), whole)
    assert sizes == [2, 2]
    assert made.decode(whole).inner_decode_seconds > 0


def test_defaults_of_a_class_are_its_calls():
    row, family = generic.row_of("HunyuanVideoPipeline", "mine", "/model")
    takes = inspect.signature(diffusers.HunyuanVideoPipeline.__call__).parameters
    assert (row.steps, row.height, row.width) == (
        takes["num_inference_steps"].default,
        takes["height"].default,
        takes["width"].default,
    )
    assert family.draws == "video"
