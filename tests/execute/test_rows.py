"""A prompt set whose rows have their own settings, through the whole job."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.macs.arm import macs_of_arm
from tgate_batch.models.pipeline_runner import PipelineRunner, open_runner
from tgate_batch.output.run import load_run
from tgate_batch.records import Prompt, RowSettings, Shard
from tgate_batch.render.renderer import Renderer

COLUMNS = ("negative_prompt", "seed", "guidance_scale", "height", "width", "steps")
MEANT = {column: column for column in COLUMNS}  # the config gives some of them too
ROWS = [  # three sizes, two numbers of steps, seeds, negative prompts, guidance or none
    ("p0", "", "", "", "", "", ""),
    ("p1", "blurry", "7", "", "32", "48", ""),
    ("p2", "", "", "2.5", "", "", "6"),
    ("p3", "dark", "8", "6.0", "", "", "6"),
    ("p4", "", "7", "1.0", "48", "32", ""),
    ("p5", "", "9", "", "32", "48", ""),
    ("p6", "blurry", "", "9", "", "", ""),
    ("p7", "", "", "3", "", "", ""),
]


def write(file, rows) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "Prompt", "mood", *COLUMNS])
        writer.writerows([row[0], f"a picture of {row[0]}", "calm", *row[1:]] for row in rows)


def made(tiny, folder, rows) -> config.Config:
    """A run of these rows under two arms, in batches padded to four rows."""
    file = folder / "set.csv"
    write(file, rows)
    return config.parse(
        {
            "models": [{"name": "sd15", "path": tiny}],
            "prompts": {"path": str(file), "shard_size": 4, "keep": ["Mood"], "columns": MEANT},
            "sampling": {
                "steps": 4,
                "guidance_scale": 4.0,
                "height": 32,
                "width": 32,
                "batch_size": 4,
                "scheduler": "DDIMScheduler",
            },
            "arms": {"baseline": {}, "tgate": {"gate_step": 2, "sp_interval": 2}},
            "workers": {"executor": "local"},
            "output": str(folder / "out"),
        }
    )


def drawn(run: config.Config, arm: str) -> dict[str, dict]:
    files = sorted(Path(run.output, "images", "sd15", arm).glob("*.parquet"))
    return {row["prompt_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory) -> config.Config:
    """A finished run of all rows."""
    run = made(tiny, tmp_path_factory.mktemp("mixed"), ROWS)
    assert workflow.render(run) == workflow.DONE
    return run


def test_each_row_is_bitwise_the_picture_of_a_run_of_it_alone(mixed):
    found = {arm: drawn(mixed, arm) for arm in mixed.arms}
    pipeline = open_runner(mixed.models[0], mixed).pipeline
    for row in ROWS:
        given = {key: value for key, value in zip(COLUMNS, row[1:], strict=True) if value}
        seed = int(given.pop("seed")) if "seed" in given else None
        numbers = {key: float(value) for key, value in given.items() if key != "negative_prompt"}
        sampling = config.Sampling.model_validate(dict(mixed.sampling) | given | numbers)
        runner = PipelineRunner(
            pipeline, catalogue.family_of("sd15"), catalogue.resolve("sd15", sampling)
        )
        alone = Renderer(runner, mixed.images, "alone")
        prompt = Prompt(row[0], f"a picture of {row[0]}", overrides=RowSettings(seed=seed))
        for name, arm in mixed.arms.items():
            (draw,) = alone.render(Shard(0, (prompt,)), name, arm)
            assert draw().image == found[name][row[0]]["image"]["bytes"]
            assert draw().seed == found[name][row[0]]["seed"]


def test_a_batch_of_one_kind_gives_each_row_what_a_batch_of_its_settings_gives(settings):
    """Rows of differing guidance and negative prompts share it."""
    run = config.parse(settings)
    runner = open_runner(run.models[0], run)
    owns = [RowSettings("blurry", 1, 3.0), RowSettings(None, 2, 6.0), RowSettings("dark", 3, None)]

    def pictures(chosen, arm) -> list[bytes]:
        prompts = tuple(
            Prompt(f"p{i}", f"number {i}", overrides=overrides)
            for i, overrides in enumerate(chosen)
        )
        rows = Renderer(runner, run.images, "test").render(Shard(0, prompts), "arm", arm)
        found = [row() for row in list(rows)]
        assert {row.batch_size for row in found} == {3}
        return [row.image for row in found]

    runner.sampling = runner.sampling.model_copy(update={"batch_size": 3})
    for arm in run.arms.values():
        together = pictures(owns, arm)
        for place, overrides in enumerate(owns):
            uniform = [overrides._replace(seed=one.seed) for one in owns]
            assert pictures(uniform, arm)[place] == together[place]


def test_a_shard_of_several_kinds_gives_a_row_each_kind_after_kind(settings):
    run = config.parse(settings)
    owns = [RowSettings(steps=2), RowSettings(width=48), RowSettings(steps=2), RowSettings()]
    prompts = tuple(
        Prompt(f"p{i}", f"number {i}", overrides=overrides) for i, overrides in enumerate(owns)
    )
    renderer = Renderer(open_runner(run.models[0], run), run.images, "test")
    found = [row() for row in list(renderer.render(Shard(0, prompts), "plain", config.Arm()))]
    assert [row.prompt_id for row in found] == ["p0", "p2", "p1", "p3"]
    assert [(row.steps, row.width, row.batch_size) for row in found] == [
        (2, 32, 2),
        (2, 32, 2),
        (4, 48, 1),
        (4, 32, 1),
    ]


def test_rows_say_what_they_were_drawn_with_and_the_report_what_they_cost(mixed):
    found = {arm: drawn(mixed, arm) for arm in mixed.arms}
    row = found["tgate"]["p3"]
    assert (row["seed"], row["negative_prompt"], row["guidance_scale"]) == (8, "dark", 6.0)
    assert (row["steps"], row["width"], row["height"], row["place"]) == (6, 32, 32, 3)
    assert json.loads(row["kept"]) == {"mood": "calm"}
    assert found["baseline"]["p1"]["width"] == 48
    assert found["baseline"]["p0"]["negative_prompt"] is None
    run = load_run(mixed.output)
    assert {shard.batch_key for shard in run.shards} == {*run.batch_keys}
    assert len(run.batch_keys) == 5
    report = json.loads(run.folder.read("report/report.json"))
    arms = {arm["arm"]: arm for arm in report["arms"]}
    for name, arm in mixed.arms.items():
        each = [
            macs_of_arm(
                mixed.models[0],
                arm,
                config.effective_sampling(run.sampling("sd15"), row=shard.batch_key),
            ).per_image
            for shard in run.shards
            for _ in range(shard.prompts)
        ]
        assert arms[name]["macs_per_image"] == round(sum(each) / len(ROWS))
        assert arms[name]["images"] == len(ROWS)
    assert arms["tgate"]["paired"]["psnr"] > 0
    assert workflow.verify(mixed.output, again=3) == workflow.DONE


def test_unused_columns_are_named_at_the_start(settings, tmp_path, capsys):
    file = tmp_path / "set.csv"
    write(file, ROWS)
    columns = MEANT | {"steps": None}
    run = config.parse(settings | {"prompts": {"path": str(file), "columns": columns}})
    assert workflow.dry_run(run) == workflow.DONE
    lines = capsys.readouterr().out.splitlines()
    assert (
        "prompts: not used: columns mood, steps (prompts.keep copies them to the output)" in lines
    )
    assert any(
        line.startswith("prompts: rows have their own negative_prompt, se") for line in lines
    )


def test_a_longer_set_draws_only_what_joins(tiny, tmp_path):
    run = made(tiny, tmp_path, ROWS[:5])
    folder = Path(run.output, "images", "sd15", "tgate")
    assert workflow.render(run) == workflow.DONE
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert workflow.render(made(tiny, tmp_path, ROWS)) == workflow.DONE
    assert sorted(drawn(run, "tgate")) == [row[0] for row in ROWS]
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert before.items() < after.items()


def test_a_size_that_a_model_does_not_draw_is_told_with_the_row(settings, tmp_path):
    file = tmp_path / "set.csv"
    write(file, [("p0", "", "", "", "64", "64", ""), ("p1", "", "", "", "64", "40", "")])
    prompts = {"path": str(file), "columns": MEANT}
    settings |= {"models": ["sana"], "prompts": prompts, "arms": {"baseline": {}}}
    with pytest.raises(UserError, match=r"row 2 of the set .* multiples of 32"):
        workflow.prepare(config.parse(settings))


def test_a_plan_that_does_not_suit_a_rows_steps_is_told_with_the_row(settings, tmp_path):
    file = tmp_path / "set.csv"
    write(file, [("p0", "", "", "", "", "", ""), ("p1", "", "", "", "", "", "2")])
    prompts = {"path": str(file), "columns": MEANT}
    settings |= {"prompts": prompts, "arms": {"tgate": {"gate_step": 3}}}
    with pytest.raises(UserError) as caught:
        workflow.prepare(config.parse(settings))
    assert str(caught.value).startswith("prompts, row 2 of the set (steps 2): arms.tgate with sd15")
    assert not (tmp_path / "out").exists()
