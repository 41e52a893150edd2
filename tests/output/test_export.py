"""Exported pictures: what others read of them, and what a second export does."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.output import export as exports
from tgate_batch.output import layout, parquet
from tgate_batch.output import run as runs
from tgate_batch.output.export import METADATA, ExportResult, select_arms
from tgate_batch.records import SCHEMA, ImageRecord, Shard

ROOT = Path(__file__).parents[2]
IDS = ("a", "../../b", "c/d", "e f; $(g)", "g")  # of the prompts "picture 0" to "picture 4"
FAILED = "c/d"


def stored(value: int) -> bytes:
    """A picture of one grey."""
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "webp", lossless=True)
    return stream.getvalue()


def draw(run: runs.Run, shard: Shard, arm: str, first: int = 0) -> None:
    """Writes a shard's file: grey pictures from ``first`` on, and one error."""
    rows = [
        ImageRecord(prompt.id, 0, prompt.text, 1, "error", error="no")
        if prompt.id == FAILED
        else ImageRecord(
            prompt.id, 0, prompt.text, 1, "ok", image=stored(first + number), width=8, height=8
        )
        for number, prompt in enumerate(shard.prompts)
    ]
    plan = run.shards[shard.index]
    parquet.write_records(
        run.folder,
        *run.pictures("demo", arm, plan)[:1],
        "demo",
        arm,
        rows,
        run.pictures("demo", arm, plan)[1],
    )


def drawn(here: Path, arms: tuple[str, ...], prompts: dict[str, str], size: int = 2) -> runs.Run:
    """A run whose pictures were drawn by hand."""
    captions = here / "captions.jsonl"
    lines = (json.dumps({"id": key, "text": text}) for key, text in prompts.items())
    captions.write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "models": ["demo"],
        "prompts": {"path": str(captions), "shard_size": size},
        "arms": {name: {"gate_step": number + 1} for number, name in enumerate(arms)},
        "output": str(here / "out"),
    }
    prepared = workflow.prepare(config.parse(settings))
    runs.begin_run(prepared)
    run = runs.load_run(prepared.config.output)
    for plan in run.shards:
        for arm in arms:
            draw(run, runs.prompt_store.load_shard(run.folder, plan), arm)
    return run


@pytest.fixture
def run(tmp_path) -> runs.Run:
    prompts = {key: f"picture {number}" for number, key in enumerate(IDS)}
    return drawn(tmp_path, ("baseline", "test"), prompts)


def export(run: runs.Run, to: str, arm=None, model=None, **options) -> list[ExportResult]:
    return list(exports.export(run, to, select_arms(run, model, arm), **options))


def metadata(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]


def opened(folder: Path, tmp_path: Path):
    import datasets

    return datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )


@pytest.mark.parametrize("arm", ["baseline", "test"])  # `test` is a word that datasets looks for
def test_arm_opens_as_an_imagefolder(run, tmp_path, arm):
    (found,) = export(run, str(tmp_path / "files"), arm=arm)
    assert (found.pictures, found.written, found.errors) == (4, 4, 1)
    rows = opened(tmp_path / "files" / "demo" / arm, tmp_path)
    assert rows["text"] == [f"picture {number}" for number in (0, 1, 3, 4)]
    assert rows["prompt_id"] == [key for key in IDS if key != FAILED]
    assert {row["image"].size for row in rows} == {(8, 8)}
    assert {(row["model"], row["arm"]) for row in rows} == {("demo", arm)}


def test_arms_open_together(tmp_path):
    run = drawn(tmp_path, ("baseline", "tgate"), {"a": "one", "b": "two"})
    export(run, str(tmp_path / "files"))
    rows = opened(tmp_path / "files", tmp_path)
    assert sorted(zip(rows["arm"], rows["text"], strict=True)) == [
        ("baseline", "one"),
        ("baseline", "two"),
        ("tgate", "one"),
        ("tgate", "two"),
    ]


def test_every_shard_of_every_arm_is_told_as_it_is_done(run, tmp_path):
    done: list[None] = []
    export(run, str(tmp_path / "files"), shard_done=lambda: done.append(None))
    assert len(done) == 2 * len(run.shards)


def test_arm_that_datasets_takes_for_a_split_is_told(run, tmp_path, capsys):
    workflow.export(run.config.output, str(tmp_path / "files"))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == 1
    assert "'test'" in notes[0]


def test_pytorch_fid_reads_the_arms_folder(run, tmp_path):
    from pytorch_fid.fid_score import compute_statistics_of_path

    class Mean(torch.nn.Module):
        """A picture's feature is its mean level, from 0 to 255."""

        def forward(self, pictures):
            return [255 * pictures.mean(dim=(1, 2, 3))[:, None, None, None]]

    export(run, str(tmp_path / "files"))
    folder = str(tmp_path / "files" / "demo" / "baseline")
    mean, _ = compute_statistics_of_path(folder, Mean(), 2, 1, "cpu", num_workers=0)
    greys = [
        shard.index(prompt)
        for shard in (runs.prompt_store.load_shard(run.folder, plan).prompts for plan in run.shards)
        for prompt in shard
        if prompt.id != FAILED
    ]
    assert mean == pytest.approx([sum(greys) / 4], abs=1e-4)


def test_files_have_the_stored_bytes_and_no_name_of_an_id(run, tmp_path):
    to = tmp_path / "files"
    export(run, str(to))
    table = [
        row
        for name in run.folder.names(layout.images("demo", "test"))
        for row in parquet.read_table(run.folder, name).to_pylist()
    ]
    bytes_of = {row["prompt_id"]: row["image"]["bytes"] for row in table if row["image"]}
    folder = to / "demo" / "test"
    for row in metadata(folder):
        assert (folder / row["file_name"]).read_bytes() == bytes_of[row["prompt_id"]]
    assert {path.relative_to(to).parts[:2] for path in to.rglob("*.*")} == {
        ("demo", "baseline"),
        ("demo", "test"),
    }
    assert sum(path.suffix == ".webp" for path in tmp_path.rglob("*")) == 8


def test_every_column_of_a_row_is_exported(run, tmp_path):
    said = {
        "negative_prompt": "blurry",
        "guidance_scale": 4.5,
        "steps": 20,
        "strength": 0.5,
        "place": 0,
        "kept": '{"source": "me"}',
        "memory": "halved",
    }
    plan = run.shards[0]
    name, identity = run.pictures("demo", "test", plan)
    prompts = runs.prompt_store.load_shard(run.folder, plan).prompts
    rows = [
        ImageRecord(p.id, 0, p.text, 1, "ok", image=stored(1), width=8, height=8, **said)
        for p in prompts
    ]
    parquet.write_records(run.folder, name, "demo", "test", rows, identity)
    export(run, str(tmp_path / "files"), arm="test")
    (first, *_) = metadata(tmp_path / "files" / "demo" / "test")
    assert said.items() <= first.items()
    left_out = {"prompt", "status", "error", "error_kind", "error_traceback", "image", "video"}
    assert first.keys() == {"file_name", "text", *SCHEMA.names} - left_out


def test_a_prompt_has_the_same_file_name_in_every_arm(run, tmp_path):
    draw(run, runs.prompt_store.load_shard(run.folder, run.shards[0]), "test", first=100)
    export(run, str(tmp_path / "files"))
    base, test = (
        {row["prompt_id"]: row["file_name"] for row in metadata(tmp_path / "files" / "demo" / arm)}
        for arm in ("baseline", "test")
    )
    assert base == test
    assert len(set(base.values())) == len(base)


def test_second_export_writes_nothing_and_says_so(run, tmp_path):
    to = tmp_path / "files"
    export(run, str(to))
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*") if path.is_file()}
    again = export(run, str(to))
    assert [str(found) for found in again] == [
        f"demo {arm}: 4 images, all exported before; 1 error rows left out"
        for arm in ("baseline", "test")
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_picture_that_was_drawn_again_replaces_the_old_one(run, tmp_path):
    to = tmp_path / "files"
    export(run, str(to), arm="test")
    draw(run, runs.prompt_store.load_shard(run.folder, run.shards[0]), "test", first=100)
    (found,) = export(run, str(to), arm="test")
    new = run.shards[0].prompts
    assert (found.pictures, found.written) == (4, new)
    names = {path.name for path in (to / "demo" / "test").glob("*.webp")}
    assert names == {row["file_name"] for row in metadata(to / "demo" / "test")}
    first = Image.open(to / "demo" / "test" / min(names))
    assert first.getpixel((0, 0)) == (100, 100, 100)


def test_missing_and_damaged_shards_are_told_with_code_4(run, tmp_path, capsys):
    first, second = (run.pictures("demo", "test", plan)[0] for plan in run.shards[:2])
    run.folder.delete(first)
    run.folder.write(second, run.folder.read(second)[:-9])
    left = sum(plan.prompts for plan in run.shards[2:])
    code = workflow.export(run.config.output, str(tmp_path / "files"), arm="test")
    assert code == workflow.MISSING
    assert "2 shards are missing or damaged (first: 0)" in capsys.readouterr().out
    assert len(metadata(tmp_path / "files" / "demo" / "test")) == left


def test_folder_with_files_of_somebody_else_is_refused(run, tmp_path):
    mine = tmp_path / "files" / "demo" / "test" / "mine.webp"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"x")
    with pytest.raises(UserError, match=r"demo/test/mine\.webp is not a file of an export"):
        export(run, str(tmp_path / "files"))
    assert list((tmp_path / "files").rglob("*.webp")) == [mine]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "nope"}, "has no images of nope; it has: demo baseline, demo test"),
        ({"model": "sd15"}, "has no images of sd15; it has"),
        ({"form": "tar"}, "--format tar: unknown; one of: imagefolder"),
        ({"to": "inside"}, "is in the output folder itself"),
    ],
)
def test_what_cannot_be_exported_is_told_in_a_line(run, tmp_path, changes, said):
    inside = run.folder.path("pictures")
    options = {"to": str(tmp_path / "files"), **changes}
    options["to"] = inside if options["to"] == "inside" else options["to"]
    with pytest.raises(UserError, match=said):
        export(run, **options)
    assert not (tmp_path / "files").exists()


def test_killed_job_goes_on_where_it_was(tmp_path):
    run = drawn(tmp_path, ("tgate",), {str(number): "x" for number in range(1500)}, size=500)
    folder = tmp_path / "files" / "demo" / "tgate"
    command = [sys.executable, "jobs/export.py", run.config.output, "--to", tmp_path / "files"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as job:
        while job.poll() is None and len(list(folder.glob("*.webp"))) < 50:
            time.sleep(0.001)
        job.send_signal(signal.SIGKILL)
    there = {path: path.stat().st_mtime_ns for path in folder.glob("*.webp")}
    assert 50 <= len(there) < 1500
    assert not (folder / METADATA).exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == (
        f"demo tgate: 1,500 images, {1500 - len(there):,} written now"
    )
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert len(os.listdir(folder)) == 1501
    assert len(metadata(folder)) == 1500
