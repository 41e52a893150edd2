import io

import numpy as np
import pytest
import torch
from PIL import Image

from tgate_batch.config import Arm, Images, Model, ResolvedSampling, Sampling
from tgate_batch.errors import DeviceLost
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.models.schedulers import build_scheduler
from tgate_batch.records import Failure, Prompt, RowSettings, Shard, image_seed
from tgate_batch.render.renderer import Renderer

PROMPTS = tuple(Prompt(f"p{i}", f"a picture of number {i}") for i in range(6))
BASELINE, TGATE = Arm(), Arm(gate_step=2, sp_interval=2)
CACHED = Arm(gate_step=2, deepcache={"interval": 2, "branch": 0})
RIVALS = {
    "fewer steps": Arm(steps=3),
    "another scheduler": Arm(scheduler="EulerDiscreteScheduler"),
    "guidance ends": Arm(guidance_until=0.5),
    "guidance begins late": Arm(guidance_from=1, guidance_until=3),
    "guidance is reused": Arm(guidance={"until": 2, "then": "reuse"}),
    "guidance has weights": Arm(guidance={"weights": [6.0, 3.0]}),
    "a step is forecast": Arm(forecast={"steps": [2]}),
}


def sampling(**changes) -> ResolvedSampling:
    chosen = {"steps": 4, "height": 32, "width": 32, "scheduler": "DDIMScheduler", "batch_size": 2}
    return catalogue.resolve("sd15", Sampling(**{**chosen, **changes}))


@pytest.fixture
def pipeline(tiny):
    return load_pipeline(Model(name="sd15", path=tiny), sampling(), "cpu")


def renderer(pipeline, images=None, **changes) -> Renderer:
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling(**changes))
    return Renderer(runner, images or Images(format="png"), worker="test")


def rows(engine, arm=BASELINE, prompts=PROMPTS, name="arm", **options):
    return [row() for row in list(engine.render(Shard(0, prompts), name, arm, **options))]


def pixels(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row.image))).astype(int)


def test_every_prompt_is_one_row_per_picture_in_order(pipeline):
    found = rows(renderer(pipeline, images_per_prompt=2))
    assert [(row.prompt_id, row.image_number) for row in found] == [
        (prompt.id, number) for prompt in PROMPTS for number in (0, 1)
    ]
    assert {row.status for row in found} == {"ok"}
    assert len({row.image for row in found}) == len(found)


def test_pictures_equal_the_pipelines_own(pipeline):
    found = rows(renderer(pipeline), prompts=PROMPTS[:1])[0]
    overrides = pipeline(
        PROMPTS[0].text,
        num_inference_steps=4,
        height=32,
        width=32,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(image_seed(0, "p0", 0)),
    ).images[0]
    assert np.abs(pixels(found) - np.asarray(overrides).astype(int)).max() <= 1


def test_same_prompt_gets_same_noise_in_every_arm(pipeline):
    engine = renderer(pipeline)
    plain = rows(engine)
    whole = rows(engine, Arm(gate_step=4), name="whole")  # gates after the last step alone
    assert [row.seed for row in plain] == [row.seed for row in whole]
    assert [row.image for row in plain] == [row.image for row in whole]


@pytest.mark.parametrize("name", RIVALS)
def test_an_arm_draws_with_settings_of_its_own_and_leaves_the_others_theirs(pipeline, name):
    engine = renderer(pipeline)
    before = rows(engine)
    rival = rows(engine, RIVALS[name])
    assert [row.seed for row in rival] == [row.seed for row in before]
    assert all(a.image != b.image for a, b in zip(before, rival, strict=True))
    assert [row.image for row in rows(engine)] == [row.image for row in before]


def test_an_arm_of_fewer_steps_equals_a_run_of_fewer_steps(pipeline):
    fewer, euler = {"steps": 3}, {"scheduler": "EulerDiscreteScheduler"}
    assert [row.image for row in rows(renderer(pipeline), Arm(**fewer))] == [
        row.image for row in rows(renderer(pipeline, **fewer))
    ]
    inside = [row.image for row in rows(renderer(pipeline), Arm(**euler))]
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    pipeline.scheduler = build_scheduler(euler["scheduler"], pipeline.scheduler)
    assert inside == [row.image for row in rows(renderer(pipeline))]


@pytest.mark.parametrize(
    "arm", [BASELINE, TGATE, CACHED, *RIVALS.values()], ids=["baseline", "tgate", "dc", *RIVALS]
)
def test_neither_batch_nor_shard_changes_a_picture(pipeline, arm):
    together = rows(renderer(pipeline, batch_size=6), arm)
    alone = [rows(renderer(pipeline, batch_size=1), arm, (prompt,))[0] for prompt in PROMPTS]
    differences = [
        np.abs(pixels(a) - pixels(b)).max() for a, b in zip(together, alone, strict=True)
    ]
    assert max(differences) <= 1  # of 255: the last float bits may round to the next level


def test_baseline_after_a_gated_arm_is_the_same_bytes(pipeline):
    engine = renderer(pipeline)
    before = rows(engine)
    rows(engine, TGATE, name="tgate")
    rows(engine, CACHED, name="cached")
    assert [row.image for row in rows(engine)] == [row.image for row in before]


def test_prompt_that_cannot_be_encoded_is_a_row_with_its_error(pipeline):
    encode = pipeline.encode_prompt

    def failing(prompt=None, *rest, **options):
        if prompt is not None and any("3" in text for text in prompt):
            raise ValueError("no 3 please")
        return encode(prompt, *rest, **options)

    pipeline.encode_prompt = failing
    found = rows(renderer(pipeline))
    assert [row.status for row in found] == ["ok", "ok", "ok", "error", "ok", "ok"]
    assert found[3].error == "ValueError: no 3 please"
    assert found[3].image is None


def test_batch_that_does_not_fit_is_halved(pipeline):
    decode, sizes = pipeline.vae.decode, []

    def small_memory(latents, **options):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return decode(latents, **options)

    pipeline.vae.decode = small_memory
    found = rows(renderer(pipeline, batch_size=6))
    assert {row.status for row in found} == {"ok"}
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1]
    assert {row.memory for row in found} == {"batch of 1, not 6"}


def test_batch_grows_back_when_memory_is_there_again(pipeline):
    decode, sizes = pipeline.vae.decode, []

    def short_of_memory_at_first(latents, **options):
        sizes.append(len(latents))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("does not fit")
        return decode(latents, **options)

    pipeline.vae.decode = short_of_memory_at_first
    prompts = tuple(Prompt(f"p{i}", f"picture {i}") for i in range(14))
    found = rows(renderer(pipeline, batch_size=2), prompts=prompts)
    assert sizes == [2, *[1] * 8, 2, 2, 2]
    assert [row.memory for row in found] == ["batch of 1, not 2"] * 8 + [None] * 6


def test_picture_that_never_fits_is_an_error_row(pipeline):
    def no_memory(latents, **options):
        raise torch.OutOfMemoryError("does not fit")

    pipeline.vae.decode = no_memory
    found = rows(renderer(pipeline, batch_size=2), prompts=PROMPTS[:2])
    assert [row.error for row in found] == ["OutOfMemoryError: does not fit"] * 2
    assert pipeline.vae.use_slicing
    assert {row.error_kind for row in found} == {"OutOfMemoryError"}
    assert all("in no_memory" in row.error_traceback for row in found)


def test_picture_of_nan_is_an_error_row(pipeline):
    pipeline.vae.decoder.conv_out.weight.data.fill_(float("nan"))
    found = rows(renderer(pipeline), prompts=PROMPTS[:1])
    assert found[0].status == "error"
    assert "NaN" in found[0].error


def test_lost_device_is_not_a_row(pipeline):
    def lost(latents, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    pipeline.vae.decode = lost
    with pytest.raises(DeviceLost):
        rows(renderer(pipeline))


def test_quarantined_prompt_never_reaches_the_device(pipeline):
    found = rows(renderer(pipeline), quarantined={"p2": Failure("WorkerDied", "it kills")})
    assert [row.error for row in found] == [None, None, "it kills", None, None, None]


def test_first_batch_of_an_arm_is_marked_as_warm_up(pipeline):
    engine = renderer(pipeline)
    assert [row.warm_up for row in rows(engine)] == [True, True, False, False, False, False]
    assert not any(row.warm_up for row in rows(engine))


@pytest.mark.parametrize(("form", "lossless"), [("png", True), ("webp", True), ("jpeg", False)])
def test_formats_are_what_they_are_called(pipeline, form, lossless):
    plain = rows(renderer(pipeline), prompts=PROMPTS[:1])[0]
    other = rows(renderer(pipeline, Images(format=form)), prompts=PROMPTS[:1])[0]
    assert Image.open(io.BytesIO(other.image)).format.lower() == form
    assert bool((pixels(plain) == pixels(other)).all()) is lossless


def test_prompts_that_are_longer_than_the_model_reads_are_told(pipeline):
    """The tiny CLIP reads 77 tokens: a letter each, a beginning and an end."""
    fits, too_long = Prompt("fits", "a" * 75), Prompt("long", "a" * 76)
    assert renderer(pipeline).cut(Shard(0, (fits, too_long, *PROMPTS))).prompts == ("long",)


class ByTheRecipe(Arm):
    """An arm with further keys, added as CONTRIBUTING says and in no other place."""

    guidance_scale: float | None = None
    negative_prompt: str | None = None


@pytest.mark.parametrize(
    ("run", "key", "value"),
    [
        ({}, "guidance_scale", 2.0),
        ({"guidance_scale": 1.0}, "guidance_scale", 7.5),  # the run encodes no negative prompt
        ({}, "guidance_scale", 1.0),
        ({}, "negative_prompt", "a blurred picture"),
    ],
)
def test_an_arm_key_of_the_recipe_changes_the_image_as_it_changes_the_identity(
    pipeline, run, key, value
):
    """Its images are those of a run whose sampling has that value, and rows say so."""
    arm = ByTheRecipe(**{key: value})
    assert arm.settings == Arm().settings | {key: value}
    assert ByTheRecipe().settings == Arm().settings
    engine = renderer(pipeline, **run)
    plain, changed = rows(engine, BASELINE), rows(engine, arm)
    wanted = rows(renderer(pipeline, **run | {key: value}), BASELINE)
    assert [row.image for row in changed] == [row.image for row in wanted]
    assert changed[0].image != plain[0].image
    assert {getattr(row, key) for row in changed} == {value}
    assert [row.image for row in rows(engine, BASELINE)] == [row.image for row in plain]


def test_negative_prompts_that_are_longer_than_the_model_reads_are_told_where_guidance_reads_them(
    pipeline,
):
    def with_negative(letters, **overrides):
        settings = RowSettings(negative_prompt="a" * letters, **overrides)
        return Prompt(f"n{letters}{len(overrides)}", "a tent", overrides=settings)

    shard = Shard(0, (with_negative(75), with_negative(76), with_negative(76, guidance_scale=1.0)))
    assert renderer(pipeline).cut(shard) == ((), ("n760",))
    assert renderer(pipeline, negative_prompt="a" * 76).cut(Shard(0, PROMPTS[:2])) == (
        (),
        ("p0", "p1"),
    )
