"""Not a bit of a picture depends on what was drawn beside it, or on where it stood."""

import hashlib
import random

import pytest

from tgate_batch.config import Arm, Engine, Images, Model, Sampling
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.records import Prompt, Shard
from tgate_batch.render.renderer import Renderer

pytestmark = pytest.mark.usefixtures("one_thread")

ARMS = {
    "baseline": Arm(),
    "gate": Arm(gate_step=2),
    "gate and self-attention": Arm(gate_step=3, sp_interval=2, fi_interval=2),
    "deepcache": Arm(deepcache={"interval": 2, "branch": 0}),
    "gate and deepcache": Arm(gate_step=2, deepcache={"interval": 2, "branch": 0}),
    "fewer steps": Arm(steps=3),
    "euler": Arm(scheduler="EulerDiscreteScheduler"),
    "ancestral": Arm(scheduler="EulerAncestralDiscreteScheduler"),
    "lcm": Arm(scheduler="LCMScheduler"),
    "a tree of noise": Arm(scheduler="DPMSolverSDEScheduler"),
    "guidance interval": Arm(guidance_from=1, guidance_until=3),
    "guidance refreshed": Arm(guidance={"until": 1, "then": "reuse", "every": 2}, sp_interval=2),
    "guidance weights": Arm(guidance={"weights": [6.0, 3.0, 1.0]}),
    "forecast": Arm(forecast={"steps": [2]}),
    "gate and forecast": Arm(gate_step=2, forecast={"steps": [3], "order": 0}),
    "deepcache and forecast": Arm(deepcache={"interval": 2}, forecast={"first": 2, "last": 2}),
}
WORDS = ["red", "green", "blue", "small", "large", "round", "old", "new", "far", "near"]


def prompts_of(number: int) -> list[Prompt]:
    chosen = random.Random(0)
    return [Prompt(f"p{i}", " ".join(chosen.choices(WORDS, k=2 + i % 5))) for i in range(number)]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """``drawing(name)``: a function of prompts, an arm and the engine -> hashes by prompt id."""
    pipelines = {}

    def of(name: str, padding: bool = True, **engine):
        if name not in pipelines:
            folder = catalogue.save_tiny(name, tmp_path_factory.mktemp("tiny") / name)
            model = Model(name=name, path=str(folder))
            pipelines[name] = load_pipeline(model, catalogue.resolve(name, Sampling()), "cpu")
        small = {"steps": 4, "height": 32, "width": 32, "batch_size": 8, "padding": padding}
        sampling = catalogue.resolve(name, Sampling(**small))
        runner = PipelineRunner(
            pipelines[name], catalogue.family_of(name), sampling, Engine(**engine)
        )
        renderer = Renderer(runner, Images(format="png"), worker="test")

        def hashes(prompts, arm: Arm, shard: int = 64, **options) -> dict[str, str]:
            found = {}
            for start in range(0, len(prompts), shard):
                part = Shard(start, tuple(prompts[start : start + shard]))
                for row in [row() for row in list(renderer.render(part, "arm", arm, **options))]:
                    assert row.status == "ok", row.error
                    found[row.prompt_id] = hashlib.sha256(row.image).hexdigest()
            return found

        hashes.runner = runner
        return hashes

    return of


def check(hashes, number: int, arm: Arm, alone: int) -> None:
    prompts = prompts_of(number)
    expected = hashes(prompts, arm)
    assert len(set(expected.values())) > number // 2
    shuffled = random.Random(1).sample(prompts, len(prompts))
    assert hashes(shuffled, arm) == expected
    assert hashes(prompts, arm, shard=13) == expected  # every shard ends in a batch of 5
    assert hashes(prompts[3:], arm) == {k: v for k, v in expected.items() if k not in PREFIX}
    for prompt in prompts[:alone]:
        assert hashes([prompt], arm) == {prompt.id: expected[prompt.id]}


PREFIX = ("p0", "p1", "p2")


@pytest.mark.parametrize("arm", ARMS)
def test_a_picture_is_the_same_wherever_it_is_drawn(drawing, arm):
    check(drawing("sd15"), 20, ARMS[arm], alone=2)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
def test_two_hundred_pictures_are_the_same_wherever_they_are_drawn(drawing, name, arm):
    if ARMS[arm].cache is None or name != "pixart_alpha":
        check(drawing(name), 200, ARMS[arm], alone=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lcm_sdxl", "lcm_pixart_alpha", "kolors", "sana"])
def test_pictures_of_other_families_are_the_same_wherever_they_are_drawn(drawing, name):
    for arm in ("baseline", "gate"):
        check(drawing(name), 40, ARMS[arm], alone=4)


def test_decoding_in_parts_is_the_same_for_every_row(drawing):
    check(drawing("sd15", decode_batch_size=3), 20, ARMS["baseline"], alone=2)


def test_pictures_drawn_again_one_by_one_are_the_same(drawing, monkeypatch):
    """A batch that raises is drawn row by row: each row is padded to the batch it was in."""
    hashes = drawing("sd15")
    prompts = prompts_of(8)
    expected = hashes(prompts, ARMS["gate"])
    whole, first = hashes.runner.denoise, [True]

    def once(conditions, seeds):
        if first.pop() if first else False:
            raise RuntimeError("planted")
        return whole(conditions, seeds)

    monkeypatch.setattr(hashes.runner, "denoise", once)
    assert hashes(prompts, ARMS["gate"]) == expected


def test_without_padding_the_device_draws_only_what_is_asked_for(drawing, monkeypatch):
    rows = {}
    for padding in (True, False):
        hashes = drawing("sd15", padding=padding)
        seen = rows[padding] = []
        inner = hashes.runner.denoise
        monkeypatch.setattr(
            hashes.runner,
            "denoise",
            lambda conditions, seeds, seen=seen, inner=inner: (
                seen.append(len(seeds)),
                inner(conditions, seeds),
            )[1],
        )
        hashes(prompts_of(11), ARMS["baseline"])
    assert rows == {True: [8, 8], False: [8, 3]}


def test_the_probe_says_whether_equal_rows_come_out_equal(drawing, monkeypatch):
    runner = drawing("sd15").runner
    assert runner.is_invariant()
    whole = runner.denoise

    def uneven(conditions, seeds):
        latents = whole(conditions, seeds)
        latents[-1] += 1e-6
        return latents

    monkeypatch.setattr(runner, "denoise", uneven)
    assert not runner.is_invariant()
