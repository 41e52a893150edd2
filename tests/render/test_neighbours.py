"""Beside a picture stand rows of other settings, rows that fail, and rows that do not fit."""

import pytest
import torch

from tgate_batch.config import Arm, Images, Model, Sampling
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.records import Failure, Prompt, RowSettings, Shard
from tgate_batch.render.renderer import Renderer

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = tuple(Prompt(f"p{i}", f"{'very ' * (i % 5)}small picture, number {i}") for i in range(13))


@pytest.fixture(scope="module")
def pipeline(tiny):
    return load_pipeline(Model(name="sd15", path=tiny), sampling(), "cpu")


def sampling(**changes):
    chosen = {"steps": 5, "height": 32, "width": 32, "batch_size": 4}
    return catalogue.resolve("sd15", Sampling(**{**chosen, **changes}))


def drawn(pipeline, arm, *shards, **changes) -> dict[str, bytes]:
    """Key -> file, of shards that one renderer draws."""
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling(**changes))
    renderer = Renderer(runner, Images(format="png"), worker="test")
    rows = [row() for shard in shards for row in list(renderer.render(Shard(0, shard), "arm", arm))]
    return {f"{row.prompt_id}/{row.image_number}": row.image for row in rows}


def test_bits_depend_on_neighbours_without_padding(pipeline):
    """What the padding is for: a model of this size shows it in some picture of thirteen."""
    together = drawn(pipeline, Arm(), PROMPTS, padding=False, batch_size=13)
    alone = {}
    for prompt in PROMPTS:
        alone |= drawn(pipeline, Arm(), (prompt,), padding=False, batch_size=13)
    assert alone != together


def test_bits_do_not_depend_on_how_many_pictures_a_prompt_has_beside_them(pipeline):
    one = drawn(pipeline, Arm(), PROMPTS[:5])
    three = drawn(pipeline, Arm(), PROMPTS[:5], images_per_prompt=3)
    assert {key: three[key] for key in one} == one


def test_bits_of_rows_with_settings_of_their_own_do_not_depend_on_the_others(pipeline):
    overrides = [
        RowSettings(guidance_scale=2.0, negative_prompt="blurry"),
        RowSettings(seed=7),
        RowSettings(height=64),
        RowSettings(steps=3),
        RowSettings(guidance_scale=1.0),
    ]
    rows = tuple(p._replace(overrides=overrides[i % 5]) for i, p in enumerate(PROMPTS))
    mixed = drawn(pipeline, Arm(), rows)
    for row in rows[:5]:
        assert drawn(pipeline, Arm(), (row,)) == {f"{row.id}/0": mixed[f"{row.id}/0"]}


def test_bits_of_the_others_are_the_same_where_one_fails(pipeline):
    whole = drawn(pipeline, Arm(), PROMPTS)
    denoise = PipelineRunner.denoise

    def failing(self, conditions, seeds):
        if bad in seeds:
            raise ValueError("not this one")
        return denoise(self, conditions, seeds)

    with pytest.MonkeyPatch.context() as patch:
        bad = next(iter(_seeds(pipeline)))
        patch.setattr(PipelineRunner, "denoise", failing)
        rest = drawn(pipeline, Arm(), PROMPTS)
    assert rest.pop("p0/0") is None
    assert rest == {key: whole[key] for key in rest}


def test_bits_are_the_same_beside_a_quarantined_prompt(pipeline):
    whole = drawn(pipeline, Arm(), PROMPTS[:5])
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling())
    renderer = Renderer(runner, Images(format="png"), worker="test")
    died = {"p1": Failure("WorkerDied", "it kills")}
    rows = [row() for row in list(renderer.render(Shard(0, PROMPTS[:5]), "arm", Arm(), died))]
    assert [row.image for row in rows if row.status == "ok"] == [
        whole[f"p{i}/0"] for i in (0, 2, 3, 4)
    ]


def test_a_batch_that_memory_cut_is_drawn_again_with_the_same_bits(pipeline):
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling())
    renderer = Renderer(runner, Images(format="png"), worker="test")
    decode, encode = pipeline.vae.decode, pipeline.encode_prompt

    def little_memory(latents, **options):
        if len(latents) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return decode(latents, **options)

    def less_memory(prompt=None, *rest, **options):
        if prompt is not None and len(prompt) > 1:
            raise torch.OutOfMemoryError("does not fit")
        return encode(prompt, *rest, **options)

    shard = Shard(0, PROMPTS[:5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.vae, "decode", little_memory)
        patch.setattr(pipeline, "encode_prompt", less_memory)
        rows = [row() for row in list(renderer.render(shard, "arm", Arm()))]
    said = "batch of 2, not 4, text in a batch of 1, not 4"
    assert [(row.status, row.memory) for row in rows] == [("ok", said)] * 5
    fresh = Renderer(runner, Images(format="png"), worker="again")
    for row in rows:
        (again,) = fresh.render_rows(shard, [(row.prompt_id, 0)], Arm(), row.memory).values()
        assert (again.image, again.memory) == (row.image, row.memory)
    whole = Renderer(runner, Images(format="png"), worker="again").render_rows(
        shard, [("p0", 0)], Arm(), None
    )
    assert whole["p0", 0].memory is None


def test_seconds_of_a_padded_tail_are_those_of_its_pictures(pipeline):
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling())
    renderer = Renderer(runner, Images(format="png"), worker="test")
    rows = [row() for row in list(renderer.render(Shard(0, PROMPTS[:5]), "arm", Arm()))]
    assert [row.batch_size for row in rows] == [4, 4, 4, 4, 1]
    assert sum(row.batch_seconds / row.batch_size for row in rows) == pytest.approx(
        rows[0].batch_seconds + rows[4].batch_seconds
    )


def _seeds(pipeline):
    runner = PipelineRunner(pipeline, catalogue.family_of("sd15"), sampling())
    renderer = Renderer(runner, Images(format="png"), worker="test")
    return [row().seed for row in list(renderer.render(Shard(0, PROMPTS[:1]), "arm", Arm()))]
