"""The names of an output are spelled in one place, and every config field has its say or none."""

import ast
import re
from pathlib import Path

import pytest

from tgate_batch import config
from tgate_batch.output import layout

ROOT = Path(__file__).parents[2]

# What an output's names look like; the words of an identity's footer too.
SPELLED = re.compile(
    r"(^|/)(run|made_of|claim|damaged|history|report)\.jsonl?\b|shard-\{|part-\{"
    r"|^(images(?!/s\b)|features|measured|scores|workers|prompts|report|find_plan)/"
    r"|tgate_batch\.identity"
)


def strings(source: str) -> list[str]:
    """Every string that a module computes with; docstrings are not among them."""
    tree = ast.parse(source)
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append(
                "".join(p.value if isinstance(p, ast.Constant) else "{" for p in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin1")
            if id(node) not in told:
                found.append(text)
    return found


def modules() -> list[Path]:
    found = [*(ROOT / "tgate_batch").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    return sorted(file for file in found if file.name != "layout.py")


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_other_module_spells_a_name_of_the_output(file):
    allowed = {"shard-{"} if file.name == "records.py" else set()  # a shard's own name
    said = strings(file.read_text(encoding="utf-8"))
    assert [text for text in said if SPELLED.search(text) and text not in allowed] == []


def test_planted_name_is_found():
    assert SPELLED.search(strings('def f(m, a):\n    return f"images/{m}/{a}"')[0])
    assert SPELLED.search(strings('x = "made_of.json"')[0])


def test_name_of_a_shard_is_read_back():
    name = layout.shard_file(layout.images("m", "a"), 12)
    assert name == "images/m/a/shard-00012.parquet"
    assert layout.folder_and_shard(name) == ("images/m/a", 12)
    assert layout.folder_and_shard("images/m/a/other.parquet") is None
    assert layout.folder_and_shard("images/m/a/shard-12.parquet") is None


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (layout.prompts_part(3), ("prompts", None, None, None, 3)),
        (layout.shard_file(layout.images("m", "a"), 12), ("images", None, "m", "a", 12)),
        (layout.shard_file(layout.images("m", "a"), 123456), ("images", None, "m", "a", 123456)),
        (layout.shard_file(layout.features("x:Y", "m", "a"), 1), ("features", "x-Y", "m", "a", 1)),
        (
            layout.shard_file(layout.measured("psnr", "m", "a"), 1),
            ("measured", "psnr", "m", "a", 1),
        ),
        (layout.statistics("x", "m", "a"), ("statistics", "x", "m", "a", 0)),
        (layout.sums("m", "a", 2), ("sums", None, "m", "a", 2)),
        (layout.conclusion("m", "a"), ("conclusion", None, "m", "a", 0)),
        (layout.scores("m", "a"), ("scores", None, "m", "a", 0)),
        (layout.reference("x"), ("reference", "x", None, None, 0)),
        (layout.part(layout.reference("x"), "x", 4), ("part", "x", None, None, 4)),
        (layout.worker("host-1"), ("worker", "host-1", None, None, 0)),
        ("images/m/a/shard-12.parquet", None),
        ("images/m/a/shard-000012.parquet", None),
        ("images/m/a/b/shard-00012.parquet", None),
        ("notes.txt", None),
    ],
)
def test_what_a_file_is_can_be_told_by_its_name(name, place):
    assert layout.role_of(name) == place


# Fields that change no picture, each with its reason.
NO_PICTURE = {
    "models.path": "the files themselves decide: their fingerprint does",
    "models.config": "the same",
    "models.variant": "the same",
    "models.unet": "the same",
    "models.vae": "the same",
    "prompts.path": "the prompts themselves decide: each shard's digest does",
    "prompts.id_column": "the same",
    "prompts.text_column": "the same",
    "prompts.image_column": "the same",
    "prompts.columns": "the same",
    "prompts.strength": "the same",
    "prompts.repeated_ids": "the same",
    "prompts.image_roots": "where they may lie",
    "prompts.keep": "the same",
    "prompts.limit": "more prompts join as further shards",
    "prompts.offset": "the prompts themselves decide",
    "prompts.shuffle": "the prompts themselves decide",
    "prompts.shard_size": "how prompts are grouped changes none of them",
    "workers.executor": "who renders",
    "workers.min": "who renders",
    "workers.max": "who renders",
    "workers.cpus_each": "who renders",
    "workers.hang_after": "who renders",
    "workers.room_within": "who renders",
    "max_errors": "when a run stops",
    "workers.gpus_each": "decides the dtype, which is in the identity",
    "engine.offload_text_encoder": "where weights wait",
    "images.quality": "of JPEG alone",
    "cost.usd_per_gpu_hour": "money",
    "cost.usd_per_cpu_hour": "money",
    "output": "where it goes",
    "plugins": "where code comes from",
    "thresholds.undecided": "what is judged",
    "find_plan.limits": "what is searched: the plans are arms, and arms are in the identity",
    "find_plan.plans": "the same",
    "find_plan.families": "the same",
    "find_plan.prompts": "how many prompts are used",
    "find_plan.confidence": "what is judged",
}
BASE = {
    "models": [{"name": "demo", "dtype": "float32"}],
    "prompts": {"path": "captions.txt"},
    "arms": {"arm": {"gate_step": 5, "deepcache": {"interval": 3, "branch": 0}}},
    "output": "out",
}
OTHER = {  # another value of every field that does not say one by its type
    "models.name": "sd15",
    "models.dtype": "bfloat16",
    "models.path": "/somewhere",
    "models.scheduler": {"class": "own", "timestep_spacing": "trailing"},
    "models.loras": [{"path": "/somewhere", "scale": 0.5}],
    "prompts.columns": {"seed": None},
    "prompts.strength": 0.5,
    "prompts.repeated_ids": "number",
    "prompts.image_roots": ["/somewhere"],
    "sampling.scheduler": "DDIMScheduler",
    "sampling.negative_prompt": "blurry",
    "engine.attention": "math",
    "images.format": "png",
    "workers.executor": "local",
    "arms.deepcache": {"interval": 2, "branch": 0},
    "arms.guidance": {"until": 3},
    "arms.forecast": {"steps": [3]},
    "plugins": ["a.module"],
    "workers.hang_after": 60,
    "max_errors": 3,
    "thresholds.undecided": "pass",
    "score.weights": {"clip": "a"},
    "find_plan.limits": {"prompt_accuracy": 0.02},
    "find_plan.plans": [{"gate_step": 5}],
    "find_plan.families": ["gate"],
    "find_plan.confidence": 0.9,
    "output": "elsewhere",
}
LISTS = {"models", "arms"}


def fields() -> list[str]:
    """Every setting of a config by its dotted name."""
    found = []
    for name, field in config.Config.model_fields.items():
        inner = {"models": config.Model, "arms": config.Arm}.get(name, field.annotation)
        if isinstance(inner, type) and issubclass(inner, config.Section):
            found += [f"{name}.{leaf}" for leaf in inner.model_fields]
        else:
            found.append(name)
    return found


def base(name: str) -> dict:
    """The base config; for a field that no gated arm takes, with another arm."""
    return BASE | {"arms": {"arm": {}}} if name.startswith("arms.guidance") else BASE


def changed(name: str) -> config.Config:
    """The base config with another value in one field."""
    section, _, leaf = name.partition(".")
    data = {**base(name)}
    if not leaf:
        data[section] = OTHER[name]
        return config.parse(data)
    where = {"models": BASE["models"][0], "arms": data["arms"]["arm"]}.get(
        section, BASE.get(section, {})
    )
    new = {**where, leaf: other_value(name, where)}
    data[section] = {"models": [new], "arms": {"arm": new}}.get(section, new)
    return config.parse(data)


def other_value(name: str, where: dict):
    if name in OTHER:
        return OTHER[name]
    section, _, leaf = name.partition(".")
    kind = {"models": config.Model, "arms": config.Arm}.get(section)
    kind = kind or config.Config.model_fields[section].annotation
    before = where.get(leaf, kind.model_fields[leaf].default)
    if isinstance(before, bool):
        return not before
    if isinstance(before, int | float):
        return before + 1
    return "other" if "str" in str(kind.model_fields[leaf].annotation) else 16


def identity(run: config.Config) -> str:
    from tgate_batch.models.resolve import resolve_sampling

    model = run.models[0]
    (arm,) = run.arms.values()
    sampling = resolve_sampling(model, run.sampling)
    dtype = "float32" if model.dtype == "auto" else model.dtype
    return layout.identity(layout.of_pictures(run, model.name, arm, sampling, "sha", dtype))


@pytest.mark.parametrize("name", fields())
def test_every_field_changes_the_pictures_identity_or_is_listed_as_not(name):
    same = identity(changed(name)) == identity(config.parse(base(name)))
    assert same == (name in NO_PICTURE or name.startswith("score."))


def test_list_of_fields_without_a_say_holds_no_field_that_is_gone():
    assert set(NO_PICTURE) <= set(fields())


def test_jpeg_quality_changes_a_jpegs_identity():
    one, two = ({**BASE, "images": {"format": "jpeg", "quality": q}} for q in (90, 95))
    assert identity(config.parse(one)) != identity(config.parse(two))
