import copy

import pytest
import yaml

from tgate_batch import config
from tgate_batch.config import Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue

RUN = {
    "models": ["demo"],
    "prompts": {"path": "captions.csv"},
    "arms": {"baseline": {}, "tgate": {"gate_step": 10, "sp_interval": 5, "warm_up": 2}},
    "output": "out",
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN), encoding="utf-8")
    return path


def refusal(change) -> str:
    data = copy.deepcopy(RUN)
    change(data)
    with pytest.raises(UserError) as caught:
        config.parse(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_short_model_name_and_empty_arm_are_filled_in():
    made = config.parse({**RUN, "arms": {"plain": None}})
    assert made.models[0].name == "demo"
    assert made.arms["plain"].is_baseline


def test_baseline_is_the_first_ungated_arm():
    arms = {"a": {"gate_step": 3}, "b": {"deepcache": {"interval": 2}}, "c": {}, "d": {}}
    assert config.parse({**RUN, "arms": arms}).baseline == "c"


def test_unknown_key_is_told_with_the_nearest_known_one():
    said = refusal(lambda data: data.update(sampling={"step": 3}))
    assert "'sampling.step'" in said
    assert "did you mean 'steps'?" in said


def test_unknown_key_of_an_arm_is_told_with_the_nearest_known_one():
    said = refusal(lambda data: data["arms"]["tgate"].update(gatestep=3))
    assert "did you mean 'gate_step'?" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.pop("prompts"), "'prompts' is missing"),
        (lambda data: data.update(sampling={"steps": "many"}), "sampling.steps"),
        (lambda data: data.update(sampling={"batch_size": 0}), "sampling.batch_size"),
        (lambda data: data.update(sampling={"height": 100}), "multiple of 8"),
        (lambda data: data.update(arms={}), "arms"),
        (lambda data: data.update(arms={"../x": {}}), "cannot name a folder"),
        (lambda data: data.update(arms={"a/b": {}}), "cannot name a folder"),
        (lambda data: data.update(arms={".a": {}}), "cannot name a folder"),
        (lambda data: data["arms"]["tgate"].update(gate_step=0), "gate_step=0"),
        (lambda data: data["arms"]["tgate"].update(sp_interval=0), "sp_interval=0"),
        (lambda data: data.update(arms={"x": {"warm_up": 2}}), "needs its gate_step"),
        (lambda data: data.update(arms={"x": {"deepcache": {"interval": 0}}}), "interval=0"),
        (lambda data: data.update(models=["demo", "demo"]), "listed twice"),
        (lambda data: data.update(score={"weights": "a.pth"}), "score.weights"),
        (lambda data: data.update(score={"weights": {"clip": 7}}), "score.weights.clip"),
        (lambda data: data.update(thresholds={"fid": {}}), "a threshold needs a test"),
        (lambda data: data.update(thresholds={"fid": {"mx": 1}}), "did you mean 'max'?"),
    ],
)
def test_bad_setting_is_told_in_one_line(change, said):
    assert said in refusal(change)


def test_older_keys_of_weights_go_on_working():
    old = config.Score(clip="some/clip", lpips="a.pth", extractor_path="b.pth")
    weights = {"clip": "some/clip", "lpips": "a.pth", "extractor": "b.pth"}
    assert old == config.Score(weights=weights)
    assert config.Score.model_validate(old.model_dump()) == old


def test_weights_of_null_are_not_given():
    assert config.Score(clip=None, weights={"lpips": None, "extractor": "b"}).weights == {
        "extractor": "b"
    }


@pytest.mark.parametrize("older", [None, "b.pth"])
def test_weights_given_twice_must_be_the_same(older):
    def both(data):
        data.update(score={"lpips": older, "weights": {"lpips": "a.pth"}})

    assert "'lpips' and 'weights.lpips' are one setting and differ" in refusal(both)
    assert config.Score(lpips="a.pth", weights={"lpips": "a.pth"}).weights == {"lpips": "a.pth"}


def test_older_key_gates_is_told_its_new_name():
    said = refusal(lambda data: data.update(gates={"fid": {"max": 24}}))
    assert said == "config: the key 'gates' has a new name; rename it to 'thresholds'"


def test_overrides_are_laid_over_the_file(file):
    made = config.load(
        file,
        [
            "prompts.limit=300",
            "sampling.steps=4",
            "arms.v1.gate_step=5",
            "models.0.path=/x",
            "score.weights.clip=some/clip",
            "thresholds.fid.max=24",
        ],
    )
    assert made.prompts.limit == 300
    assert made.sampling.steps == 4
    assert made.arms["v1"].gate_step == 5
    assert made.score.weights == {"clip": "some/clip"}
    assert made.thresholds.figures["fid"].max == 24
    assert (made.models[0].name, made.models[0].path) == ("demo", "/x")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "not of the form"),
        ("models.3.path=x", "no '3'"),
        ("output.x=1", "single value"),
        ("prompts.limit=lots", "prompts.limit"),
        ("sampling.stepz=4", "did you mean 'steps'?"),
    ],
)
def test_bad_override_is_told(file, override, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        config.load(file, [override])


def test_missing_file_and_bad_yaml_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        config.load(broken)


def test_yaml_cannot_make_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("output: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: the tag .*os.getcwd' is not read"):
        config.load(file)


def test_open_sampling_takes_the_models_documented_setting():
    chosen = catalogue.resolve("sdxl", Sampling(steps=30))
    assert (chosen.steps, chosen.guidance_scale, chosen.height) == (30, 7.5, 1024)


def test_unknown_model_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        catalogue.resolve("sdlx", Sampling())
