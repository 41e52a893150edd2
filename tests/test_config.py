import copy
import os

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
        (lambda data: data.update(arms={"x": {"warm_up": 2}}), "need a gate_step"),
        (lambda data: data.update(arms={"x": {"deepcache": {"interval": 0}}}), "interval=0"),
        (lambda data: data.update(models=["demo", "demo"]), "listed twice"),
        (lambda data: data.update(score={"weights": "a.pth"}), "score.weights"),
        (lambda data: data.update(score={"weights": {"clip": 7}}), "score.weights.clip"),
        (
            lambda data: data.update(workers={"min": 4, "max": 2}),
            "workers: min 4 is more than max 2",
        ),
        (lambda data: data.update(sampling={"guidance_scale": "nan"}), "finite number"),
        (lambda data: data.update(plugins=["../plug"]), "plugins.0"),
        (lambda data: data.update(plugins=["plug.py/"]), "plugins.0"),
        (lambda data: data.update(plugins=[""]), "plugins.0"),
        (lambda data: data.update(output="x" * 9, sampling={"seed": "y" * 999}), "yyy'..."),
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

    assert "'lpips' and 'weights.lpips' are the same setting but differ" in refusal(both)
    assert config.Score(lpips="a.pth", weights={"lpips": "a.pth"}).weights == {"lpips": "a.pth"}


def test_older_key_gates_is_told_its_new_name():
    said = refusal(lambda data: data.update(gates={"fid": {"max": 24}}))
    assert said == "config: the key 'gates' was renamed. Fix: rename it to 'thresholds'"


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
        ("steps", "does not have the form"),
        ("models.3.path=x", "no '3'"),
        ("output.x=1", "single value"),
        ("prompts.limit=lots", "prompts.limit"),
        ("sampling.stepz=4", "did you mean 'steps'?"),
    ],
)
def test_bad_override_is_told(file, override, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        config.load(file, [override])


LAUGHS = "a: &a [x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [", "is not YAML: line 1: expected the node content"),
        (b"a:\n\t- b", "is not YAML: line 2: found character '\\t'"),
        (b"a: b\n---\nc: d", "is not YAML: line 2: but found another document"),
        (b"a: \0", "is not YAML: unacceptable character #x0000"),
        (b"a: \xe9", "is not YAML: not UTF-8"),
        (b"", "has no keys"),
        (b"# nothing\n", "has no keys"),
        (b"- models", "has no keys"),
        (b"seven", "has no keys"),
        (b"output: a\nmodels: [demo]\noutput: b", "line 3: the key 'output' is given twice"),
        (b"arms: {no: {}}", "line 1: YAML reads the key no as bool, not as text. Fix: quote it"),
        (b"arms:\n  1: {}", "line 2: YAML reads the key 1 as int, not as text. Fix: quote it"),
        (b"arms: {~: {}}", "YAML reads the key ~ as null"),
        (b"? [a]\n: b", "line 1: a list or section is used as a key"),
        (b"a: !!binary aaaa", "line 1: the tag 'tag:yaml.org,2002:binary' is not supported"),
        (LAUGHS.encode(), "line 6: more than 20,000 values (aliases written out)"),
        (b"a: &a [*a]", "line 1: the alias *a contains itself"),
        (b"a: " + b"[" * 100_000, "it is nested too deeply"),
        (b"a: " + b"[" * 21 + b"]" * 21, "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0: it is nested"),
        (b"a: " + b"x" * 300_000, "has 300,003 bytes, but a config has at most 262,144"),
        (b"a: " + b"9" * 5000, "a number or date cannot be read"),
        (b"a: 2026-99-99", "a number or date cannot be read: month must be in 1..12"),
        (b"output: 2026-11-27", "output: YAML reads this value as date. Fix: quote it"),
        (
            b"sampling: {seed: 99999999999999999999}",
            "sampling.seed: the number 99999999999999999999 is out of range",
        ),
        (
            b"sampling: {guidance_scale: .nan}",
            "sampling.guidance_scale: the number nan is out of range",
        ),
        (
            b"cost: {usd_per_gpu_hour: .inf}",
            "cost.usd_per_gpu_hour: the number inf is out of range",
        ),
        (b'output: "a\\0b"', "output: the text has a NUL character"),
        (b'models: ["a\\ud800"]', "models.0: the text has half of a surrogate pair"),
        (b'"a\\0": 1', "the text has a NUL character"),
        (
            b'{models: [a], prompts: {path: p}, arms: {a: }, output: o, "a\\nb": 1}',
            "unknown key 'a b'",
        ),
    ],
)
def test_bad_file_is_told_in_one_line(tmp_path, content, said):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(file)
    assert str(caught.value).startswith(f"config {file}")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_aliases_and_merged_sections_are_read(tmp_path):
    arms = {"a": {"gate_step": 3, "warm_up": 1}, "b": {"gate_step": 4, "warm_up": 1}}
    text = yaml.safe_dump({key: value for key, value in RUN.items() if key != "arms"})
    file = tmp_path / "run.yaml"
    file.write_text(
        text + "arms: {a: &one {gate_step: 3, warm_up: 1}, b: {<<: *one, gate_step: 4}}\n"
    )
    assert config.load(file).arms == config.parse({**RUN, "arms": arms}).arms


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "nul"])
def test_what_is_no_regular_file_is_told_and_never_waited_for(tmp_path, kind):
    file = tmp_path / "run.yaml"
    if kind == "folder":
        file.mkdir()
    if kind == "pipe":
        os.mkfifo(file)
    if kind == "device":
        file.symlink_to("/dev/zero")
    if kind == "nul":
        file = tmp_path / "a\0b"
    with pytest.raises(
        UserError, match=r"cannot be read|does not exist|is a folder|is not a regular file"
    ) as caught:
        config.load(file)
    assert str(caught.value).isprintable()


def test_what_a_file_has_too_much_of_is_refused_of_an_override_too(file):
    for override, said in [
        ("arms={no: {}}", 'Fix: quote it: "no"'),
        ("sampling={seed: 1, seed: 2}", "the key 'seed' is given twice"),
        ("sampling.seed=" + "9" * 30, "sampling.seed: the number 9999"),
        ('output="a\\0b"', "output: the text has a NUL character"),
        ("output=" + "[" * 3000, "it is nested too deeply"),
        ("models.²=x", "the config has no '²' there"),
    ]:
        with pytest.raises(UserError) as caught:
            config.load(file, [override])
        assert said in str(caught.value)
        assert str(caught.value).isprintable()


def test_override_of_an_empty_entry_fills_it(file):
    file.write_text(yaml.safe_dump(RUN | {"models": [None]}), encoding="utf-8")
    assert config.load(file, ["models.0.name=demo"]).models[0].name == "demo"


def test_yaml_cannot_make_objects(tmp_path):
    file = tmp_path / "evil.yaml"
    file.write_text("output: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1: the tag .*os.getcwd' is not supported"):
        config.load(file)


def test_open_sampling_takes_the_models_documented_setting():
    chosen = catalogue.resolve("sdxl", Sampling(steps=30))
    assert (chosen.steps, chosen.guidance_scale, chosen.height) == (30, 7.5, 1024)


def test_unknown_model_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'sdxl'"):
        catalogue.resolve("sdlx", Sampling())
