"""Planted damage is found, a sound run has none, and what a repair removes is made again."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute.verify import verify
from tgate_batch.output import layout, lock, parquet, seal
from tgate_batch.output.lock import output_lock
from tgate_batch.records import BEFORE_DIGEST, ImageRecord
from tgate_batch.storage import Folder

ROOT = Path(__file__).parents[2]
MODEL, SHARDS, EACH = "sd15", 3, 2
EXTRACTOR = "efficientnet-lite0"


@pytest.fixture(scope="module")
def settings(tiny, tmp_path_factory) -> dict:
    """A run of 6 prompts in 3 shards with two arms, compared with four pictures of noise."""
    here = tmp_path_factory.mktemp("sound")
    (here / "captions.txt").write_text("".join(f"picture {i}\n" for i in range(SHARDS * EACH)))
    (here / "reference").mkdir()
    noise = np.random.default_rng(0)
    for number in range(4):
        pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(here / "reference" / f"{number}.png")
    return {
        "models": [{"name": MODEL, "path": tiny}],
        "prompts": {"path": str(here / "captions.txt"), "shard_size": EACH},
        "sampling": {"steps": 3, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 1}},
        "workers": {"executor": "local"},
        "score": {"reference": str(here / "reference")},
        "output": str(here / "out"),
    }


@pytest.fixture(scope="module")
def sound(settings) -> Path:
    """The output folder of that run, finished."""
    assert workflow.render(config.parse(settings)) == 0
    return Path(settings["output"])


@pytest.fixture
def out(sound, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(sound, tmp_path / "out")


def shard(arm: str = "tgate", index: int = 1) -> str:
    return layout.shard_file(layout.images(MODEL, arm), index)


def figures(metric: str, arm: str = "tgate", index: int = 1) -> str:
    return layout.shard_file(layout.measured(metric, MODEL, arm), index)


FEATURES = layout.shard_file(layout.features(EXTRACTOR, MODEL, "tgate"), 1)
PROMPTS = layout.prompts_part(0)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def flip_in_page(file: Path, column: str) -> None:
    """Flips a bit of the last byte of a column's data in the first row group."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    chunk = next(one for one in columns if one.path_in_schema == column)
    start = min(o for o in (chunk.dictionary_page_offset, chunk.data_page_offset) if o)
    flip(file, start + chunk.total_compressed_size - 1)


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes other rows under the same footer, with checksums that are right."""
    table = pq.read_table(file)
    changed = change(table)
    footer = table.schema.metadata
    pq.write_table(changed.replace_schema_metadata(footer), file, write_page_checksum=True)


def set_cell(column: str, value: object, row: int = 0) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        place = table.schema.get_field_index(column)
        return table.set_column(
            place, table.field(column), pa.array(values, table.field(column).type)
        )

    return change


def cells(**values: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        for column, value in values.items():
            table = set_cell(column, value)(table)
        return table

    return change


def picture(width: int, height: int, kind: str = "webp") -> dict:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, kind)
    return {"bytes": stream.getvalue(), "path": None}


def swap_rows(table: pa.Table) -> pa.Table:
    return table.take(list(range(len(table)))[::-1])


def swap_cells(table: pa.Table, *columns: str) -> pa.Table:
    """Exchanges the cells of the first two rows of some columns."""
    for column in columns:
        place, values = table.schema.get_field_index(column), table[column].to_pylist()
        values[:2] = values[1::-1]
        array = pa.array(values, table.field(column).type)
        table = table.set_column(place, table.field(column), array)
    return table


def rewritten(file: Path, old: bytes, new: bytes) -> None:
    """Exchanges the last such bytes of a file for as many others."""
    assert len(old) == len(new)
    before, found, after = file.read_bytes().rpartition(old)
    assert found
    file.write_bytes(before + new + after)


def digit(name: str, key: bytes) -> Callable[[Path], object]:
    """Changes the first digit that stands after a word in a file's footer."""

    def change(out: Path) -> None:
        content = (out / name).read_bytes()
        place = content.rindex(key) + len(key)
        while not 0x30 <= content[place] <= 0x39 or content[place + 1] < 0x30:
            place += 1
        flip(out / name, place)

    return change


def in_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def in_sealed_json(file: Path, change: Callable[[dict], object]) -> None:
    """As ``in_json``, under a seal of the new content, as a stranger may write it."""
    in_json(file, change)
    file.write_text(json.dumps(seal.with_seal(json.loads(file.read_text()))))


def entry(folder: str, key: str, value: object) -> Callable[[Path], object]:
    def change(out: Path) -> None:
        in_json(out / layout.LEDGER, lambda ledger: ledger["folders"][folder].update({key: value}))

    return change


def rows(change: Callable[[pa.Table], pa.Table], name: str = shard()) -> Callable[[Path], object]:
    return lambda out: rewrite(out / name, change)


def written(name: str, content: bytes = b"") -> Callable[[Path], object]:
    def write(out: Path) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)

    return write


def copied(source: str, name: str) -> Callable[[Path], object]:
    def copy(out: Path) -> None:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / source, out / name)

    return copy


def cut(name: str) -> Callable[[Path], object]:
    return lambda out: os.truncate(out / name, (out / name).stat().st_size // 2)


def page(name: str, column: str) -> Callable[[Path], object]:
    return lambda out: flip_in_page(out / name, column)


def middle(name: str) -> Callable[[Path], object]:
    return lambda out: flip(out / name, (out / name).stat().st_size // 2)


TOTAL = layout.conclusion(MODEL, "tgate")
SCORES = layout.scores(MODEL, "tgate")
STATISTICS = layout.statistics(EXTRACTOR, MODEL, "tgate")
REFERENCE = layout.reference(EXTRACTOR)
OTHER = layout.shard_file(layout.images(MODEL, "other"), 0)
TEMPORARY = f"{layout.images(MODEL, 'tgate')}/.tmp-shard-00001.parquet-{'0' * 32}"

# What is planted -> how, the file that is named, and words that are said of it.
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a byte of a picture's page": (page(shard(), "image.bytes"), shard(), "CRC"),
    "a byte of a prompt's page": (page(shard(), "prompt"), shard(), "CRC"),
    "a byte of a page of times": (page(shard(), "encode_seconds"), shard(), "CRC"),
    "a file cut off": (cut(shard()), shard(), "cannot be read"),
    "an empty file": (written(shard()), shard(), "cannot be read"),
    "a file of text": (written(shard(), b"pictures" * 99), shard(), "cannot be read"),
    "another shard's file": (copied(shard(index=0), shard()), shard(), "other settings or prompts"),
    "another arm's file": (copied(shard("baseline"), shard()), shard(), "other settings"),
    "a row missing": (rows(lambda t: t.slice(1)), shard(), "is missing"),
    "a row doubled": (rows(lambda t: pa.concat_tables([t, t.slice(1)])), shard(), "occurs 2 times"),
    "rows in another order": (rows(swap_rows), shard(), "not in the order of the prompts"),
    "a row of no prompt": (rows(set_cell("prompt_id", "new")), shard(), "row new/0"),
    "another picture number": (
        rows(set_cell("image_number", 7)),
        shard(),
        "/7 belongs to no prompt",
    ),
    "another seed": (rows(set_cell("seed", 1)), shard(), "another seed"),
    "another prompt": (rows(set_cell("prompt", "a cat")), shard(), "another prompt"),
    "another arm in a row": (rows(set_cell("arm", "x")), shard(), "has model sd15 and arm x"),
    "bytes that are no picture": (
        rows(set_cell("image", {"bytes": b"RIFF....WEBP", "path": None})),
        shard(),
        "cannot be decoded",
    ),
    "a picture cut off": (
        rows(lambda t: set_cell("image", shortened(t["image"][0].as_py()))(t)),
        shard(),
        "cannot be decoded",
    ),
    "a picture of another size": (
        rows(set_cell("image", picture(16, 32))),
        shard(),
        "an image of 16x32, but states 32x32",
    ),
    "another picture format": (rows(set_cell("image", picture(32, 32, "png"))), shard(), "in png"),
    "a row that is ok without a picture": (
        rows(set_cell("image", None)),
        shard(),
        "is ok, but has no image",
    ),
    "a failed row without a reason": (
        rows(cells(status="error", image=None)),
        shard(),
        "has failed, but has no error",
    ),
    "a failed row with a picture": (
        rows(cells(status="error", error="out of memory")),
        shard(),
        "has failed, but has an image",
    ),
    "an unknown status": (rows(set_cell("status", "done")), shard(), "status 'done'"),
    "a column missing": (rows(lambda t: t.drop_columns("worker")), shard(), "no column worker"),
    "a column too many": (
        rows(lambda t: t.append_column("more", t["seed"])),
        shard(),
        "an unexpected column more",
    ),
    "a column of another type": (
        rows(lambda t: t.set_column(5, "seed", t["batch_seconds"])),
        shard(),
        "column seed is double, not int64",
    ),
    "images exchanged between two rows": (
        rows(lambda t: swap_cells(t, "image")),
        shard(),
        "image or video that does not match its digest",
    ),
    "a digest exchanged with its image": (
        rows(lambda t: swap_cells(t, "image", "digest")),
        shard(),
        "image or video that does not match its digest",
    ),
    "a digit of MACs in a footer": (
        digit(shard(), b"macs_per_image"),
        shard(),
        "its rows or its footer do not match",
    ),
    "a digit of MACs in a measurement's footer": (
        digit(figures("rows"), b"macs_per_image"),
        figures("rows"),
        "its rows or its footer do not match",
    ),
    "a figure with a right checksum": (
        rows(set_cell("value", 1.0), figures("psnr")),
        figures("psnr"),
        "its rows or its footer do not match",
    ),
    "a byte of text in a measurement's footer": (
        lambda out: rewritten(out / figures("rows"), b'"versions', b'"versi\xe8ns'),
        figures("rows"),
        "its rows or its footer do not match",
    ),
    "a word of the card": (
        lambda out: rewritten(out / layout.CARD, b"Prompts: 6", b"Prompts: 7"),
        layout.CARD,
        "its content does not match its digest",
    ),
    "a price in the config": (
        lambda out: in_json(out / layout.RUN, lambda r: r["config"]["prompts"].update(limit=3)),
        layout.RUN,
        "its content does not match its digest",
    ),
    "a word of the page": (
        lambda out: rewritten(out / layout.REPORT_PAGE, b"baseline", b"basement"),
        layout.REPORT_PAGE,
        "its content does not match its digest",
    ),
    "a shard missing": (lambda out: (out / shard()).unlink(), shard(), "missing: "),
    "a shard beyond the plan": (copied(shard(), shard(index=3)), shard(index=3), "stray: "),
    "an arm that the ledger lacks": (copied(shard(), OTHER), OTHER, "stray: "),
    "a temporary file": (
        written(TEMPORARY, b"PAR1"),
        TEMPORARY,
        "the unfinished file of a killed process",
    ),
    "a person's file": (written("images/notes.txt", b"mine"), "images/notes.txt", "foreign: "),
    "a byte of a figure": (page(figures("psnr"), "value"), figures("psnr"), "CRC"),
    "a figure missing": (
        rows(lambda t: t.slice(1), figures("psnr")),
        figures("psnr"),
        "is missing",
    ),
    "a measurement missing": (
        lambda out: (out / figures("ssim")).unlink(),
        figures("ssim"),
        "missing: ",
    ),
    "a measurement of another shard": (
        copied(figures("rows", index=0), figures("rows")),
        figures("rows"),
        "other settings or prompts",
    ),
    "rows measured otherwise": (
        rows(cells(status="error", error="lost"), figures("rows")),
        figures("rows"),
        "not those of the images",
    ),
    "a byte of the features": (page(FEATURES, "features.list.element"), FEATURES, "CRC"),
    "features that are not finite": (
        rows(lambda t: set_cell("features", [float("nan")] * len(t["features"][0]))(t), FEATURES),
        FEATURES,
        "not finite",
    ),
    "features of one row too few": (rows(lambda t: t.slice(1), FEATURES), FEATURES, "is missing"),
    "a byte of the prompts": (page(PROMPTS, "text"), PROMPTS, "restore it from a copy"),
    "no prompts": (lambda out: (out / PROMPTS).unlink(), "prompts", "of 3 shards 0 are here"),
    "a byte of the sums": (middle(TOTAL), TOTAL, "CRC"),
    "another arm's sums": (
        copied(layout.conclusion(MODEL, "baseline"), TOTAL),
        TOTAL,
        "it is of sd15 baseline",
    ),
    "a byte of the statistics": (middle(STATISTICS), STATISTICS, "CRC"),
    "a byte of the reference": (middle(REFERENCE), REFERENCE, "CRC"),
    "scores cut off": (cut(SCORES), SCORES, "cannot be read"),
    "scores that count otherwise": (
        lambda out: in_json(out / SCORES, lambda held: held.update(images=5)),
        SCORES,
        "counts 5 images",
    ),
    "a figure of the report": (
        lambda out: in_json(out / layout.REPORT_JSON, lambda r: r["arms"][1].update(broken=1)),
        layout.REPORT_JSON,
        "its broken differs from scores/sd15/tgate.json",
    ),
    "a page cut off": (cut(layout.REPORT_PAGE), layout.REPORT_PAGE, "cut off"),
    "a torn line of the history": (
        lambda out: Folder(str(out)).append(layout.HISTORY, '{"event": "sta'),
        layout.HISTORY,
        "line 3 is not an entry",
    ),
    "a worker's notes cut off": (
        lambda out: cut(Folder(str(out)).names(layout.WORKERS)[0])(out),
        layout.WORKERS,
        "cannot be read",
    ),
    "a setting in the ledger": (
        entry(layout.images(MODEL, "tgate"), "gate_step", 2),
        layout.LEDGER,
        "gate_step is 2, not 1",
    ),
    "a checkpoint in the ledger": (
        entry(layout.images(MODEL, "tgate"), "checkpoint", "f" * 64),
        layout.LEDGER,
        "images/sd15/tgate: checkpoint is",
    ),
    "a metric's version in the ledger": (
        entry(layout.measured("psnr", MODEL, "tgate"), "version", 9),
        figures("psnr"),
        "other settings",
    ),
    "a measurement's pictures in the ledger": (
        entry(layout.measured("psnr", MODEL, "tgate"), "pictures", "0" * 64),
        layout.LEDGER,
        "not of the arm's images",
    ),
    "the sums' entry in the ledger": (
        entry(layout.sums_of(MODEL, "tgate"), "measured", "0" * 64),
        layout.LEDGER,
        "not of the arm's measurements",
    ),
    "an entry missing in the ledger": (
        lambda out: in_json(
            out / layout.LEDGER, lambda held: held["folders"].pop(layout.images(MODEL, "tgate"))
        ),
        layout.LEDGER,
        "images/sd15/tgate: it is missing",
    ),
    "no entry in the ledger but a number": (
        lambda out: in_json(out / layout.LEDGER, lambda held: held["folders"].update(prompts=7)),
        layout.LEDGER,
        "folders.prompts: Input should be a valid dictionary",
    ),
    "no ledger": (
        lambda out: (out / layout.LEDGER).unlink(),
        layout.LEDGER,
        "restore it from a copy",
    ),
    "a ledger cut off": (cut(layout.LEDGER), layout.LEDGER, "restore it from a copy"),
    "a config cut off": (cut(layout.RUN), layout.RUN, "cannot be read"),
    "a config that cannot be": (
        lambda out: in_json(out / layout.RUN, lambda r: r["config"]["sampling"].update(steps="x")),
        layout.RUN,
        "cannot be used",
    ),
    "pictures a prompt in the ledger": (
        entry(layout.sums_of(MODEL, "tgate"), "images_per_prompt", 2),
        layout.LEDGER,
        "images_per_prompt is not that of the images",
    ),
    "another seed in the config": (
        lambda out: in_json(out / layout.RUN, lambda r: r["config"]["sampling"].update(seed=5)),
        layout.RUN,
        "sampling.seed is 5, not 0",
    ),
}


def shortened(image: dict) -> dict:
    return {"bytes": image["bytes"][: len(image["bytes"]) // 2], "path": None}


def lines_of(output: Path) -> list[str]:
    found, _ = verify(str(output))
    return list(found.lines())


def test_a_sound_run_has_no_faults_and_all_of_it_is_counted(sound):
    found, _ = verify(str(sound))
    assert [str(fault) for fault in found.faults] == []
    files = 2 * SHARDS
    assert found.checked["files of images"] == files
    assert found.checked["rows"] == found.checked["images decoded"] == files * EACH
    # Of both arms: rows, features, accuracy; of one: PSNR and SSIM.
    assert found.checked["files of measurements"] == 2 * SHARDS * 3 + SHARDS * 2
    assert found.checked["sums and statistics"] == 2 * 2 + 1
    assert found.checked["names in the folder"] == sum(f.is_file() for f in sound.rglob("*"))


@pytest.mark.parametrize("planted", DAMAGE)
def test_planted_damage_is_found_and_named(out, planted):
    plant, name, words = DAMAGE[planted]
    plant(out)
    found, _ = verify(str(out))
    told = [str(fault) for fault in found.faults if fault.name.startswith(name)]
    assert any(words in line for line in told), list(found.lines())


def pictures(output: Path) -> dict[tuple[str, str, int], bytes]:
    """Every row's picture."""
    tables = [pq.read_table(file) for file in (output / layout.IMAGES).rglob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    return {(r["arm"], r["prompt_id"], r["image_number"]): r["image"]["bytes"] for r in rows}


def names(output: Path) -> set[str]:
    return {str(file.relative_to(output)) for file in output.rglob("*") if file.is_file()}


def rendered(out: Path, settings: dict, **changed: object) -> None:
    assert workflow.render(config.parse(settings | {"output": str(out)} | changed)) == 0


def repaired(out: Path, settings: dict, *planted: str) -> set[str]:
    """Plants, repairs and renders again; returns the names that were removed meanwhile."""
    for one in planted:
        DAMAGE[one][0](out)
    before = names(out)
    assert workflow.verify(str(out), repair=True) == 1
    gone = before - names(out)
    rendered(out, settings)
    return gone


def test_repair_and_a_run_make_the_undisturbed_pictures_again(out, sound, settings):
    gone = repaired(
        out,
        settings,
        "a byte of a picture's page",
        "a shard beyond the plan",
        "an arm that the ledger lacks",
        "a temporary file",
        "a torn line of the history",
        "a worker's notes cut off",
        "a byte of the reference",
        "a figure of the report",
        "a setting in the ledger",
    )
    assert {shard(), shard(index=3), OTHER, TEMPORARY, REFERENCE} <= gone
    # What was made of that shard's pictures goes too, and what those figures were added up to.
    assert {figures("psnr"), figures("rows"), FEATURES, TOTAL, SCORES, STATISTICS} <= gone
    # What is sound stays: the other shards, and the baseline.
    assert not {shard(index=0), figures("psnr", index=0), shard("baseline")} & gone
    assert layout.conclusion(MODEL, "baseline") not in gone
    assert pictures(out) == pictures(sound)
    assert lines_of(out)[-1].startswith("ok: ")


def test_a_damaged_baseline_takes_the_other_arms_comparisons_along(out, sound, settings, capsys):
    written("images/notes.txt", b"mine")(out)
    flip_in_page(out / shard("baseline"), "image.bytes")
    gone = repaired(out, settings)
    assert {shard("baseline"), figures("psnr"), figures("ssim"), TOTAL, SCORES} <= gone
    assert not {shard(), figures("psnr", index=0), figures("rows"), FEATURES} & gone
    assert "left alone: images/notes.txt" in capsys.readouterr().out
    assert pictures(out) == pictures(sound)
    (out / "images/notes.txt").unlink()
    assert lines_of(out)[-1].startswith("ok: ")


def test_wrong_entries_of_the_ledger_cost_no_picture(out, sound, settings):
    gone = repaired(
        out,
        settings,
        "a checkpoint in the ledger",
        "a metric's version in the ledger",
        "the sums' entry in the ledger",
    )
    assert not {name for name in gone if name.startswith(layout.IMAGES)}
    assert pictures(out) == pictures(sound)
    assert lines_of(out)[-1].startswith("ok: ")
    DAMAGE["an entry missing in the ledger"][0](out)
    DAMAGE["a measurement's pictures in the ledger"][0](out)
    gone = repaired(out, settings)
    assert not {name for name in gone if name.startswith(layout.IMAGES)}
    assert lines_of(out)[-1].startswith("ok: ")


def test_a_measurement_that_is_not_found_while_sums_are_made_is_an_error(
    out, settings, monkeypatch, capsys
):
    (out / TOTAL).unlink()
    whole, failures = Folder.open, {figures("rows"): 1}

    def failing(folder: Folder, name: str):
        if failures.get(name, 0) > 0:
            failures[name] -= 1
            raise FileNotFoundError(name)
        return whole(folder, name)

    monkeypatch.setattr(Folder, "open", failing)
    assert workflow.score(config.parse(settings | {"output": str(out)})) == workflow.MISSING
    said = capsys.readouterr()
    told = f"1 measurements were missing when sums were made (first: {figures('rows')})"
    assert told in said.out + said.err
    assert workflow.score(config.parse(settings | {"output": str(out)})) == 0


def test_damaged_prompts_stay_and_are_frozen_again_once_they_are_deleted(out, sound, settings):
    DAMAGE["a byte of the prompts"][0](out)
    before = names(out)
    assert workflow.verify(str(out), repair=True) == 1
    assert names(out) == before
    shutil.rmtree(out / layout.PROMPTS)
    rendered(out, settings)
    assert pictures(out) == pictures(sound)
    assert lines_of(out)[-1].startswith("ok: ")


def test_damaged_prompts_end_in_a_line_and_are_written_again_from_their_source(
    out, sound, settings, capsys
):
    DAMAGE["a byte of the prompts"][0](out)
    more = settings["arms"] | {"more": {"gate_step": 2}}
    asked = config.parse(settings | {"output": str(out), "arms": more})
    for refused in (workflow.report, workflow.render):
        with pytest.raises(UserError, match=r"\A.*part-00000\.parquet is damaged.*--repair.*\Z"):
            refused(asked)
    assert workflow.verify(str(out), repair=True) == 1
    assert f"restored: {PROMPTS}" in capsys.readouterr().out
    assert (out / PROMPTS).read_bytes() == (sound / PROMPTS).read_bytes()
    DAMAGE["no prompts"][0](out)
    with pytest.raises(UserError, match=r"\A.*part-00000\.parquet is missing.*--repair.*\Z"):
        workflow.score(asked)
    assert workflow.verify(str(out), repair=True) == 1
    assert (out / PROMPTS).read_bytes() == (sound / PROMPTS).read_bytes()


def test_prompts_whose_source_changed_are_told_with_what_is_needed(out, settings, tmp_path, capsys):
    other = tmp_path / "captions.txt"
    other.write_text("something else\n" * 6)
    in_json(out / layout.RUN, lambda r: r["config"]["prompts"].update(path=str(other)))
    DAMAGE["a byte of the prompts"][0](out)
    assert workflow.verify(str(out), repair=True) == 1
    said = capsys.readouterr()
    assert "is not the original one (another source; its sha256 was" in said.out + said.err
    assert (out / PROMPTS).exists()


def test_a_missing_part_of_the_prompts_is_the_first_fault_and_the_rest_one_line(out):
    (out / PROMPTS).unlink()
    found, _ = verify(str(out))
    assert found.faults[0].name == PROMPTS
    assert sum("cannot be judged" in str(fault) for fault in found.faults) == 1


def test_a_lost_or_damaged_ledger_is_made_again(out, sound, settings):
    for planted in ("a ledger cut off", "no ledger"):
        gone = repaired(out, settings, planted)
        assert not {name for name in gone if name.startswith(layout.IMAGES)}
        assert pictures(out) == pictures(sound)
        assert lines_of(out)[-1].startswith("ok: ")


def test_files_without_digests_are_told_and_are_no_fault(out):
    file = out / shard()
    table = pq.read_table(file)
    footer = {k: v for k, v in table.schema.metadata.items() if k not in (b"tgate_batch.seal",)}
    footer |= BEFORE_DIGEST.metadata
    old = table.drop_columns("digest").replace_schema_metadata(footer)
    pq.write_table(old, file, write_page_checksum=True)
    lines = lines_of(out)
    assert lines[-1].startswith("ok: ")
    assert lines[-2].startswith("1 files of images are older than 0.2.0, without digests: ")


def test_an_image_that_differs_from_the_one_drawn_again_is_called_so(out, capsys):
    for arm in ("baseline", "tgate"):
        for index in range(SHARDS):
            name = shard(arm, index)
            table = parquet.read_table(Folder(str(out)), name)
            records = [ImageRecord.of(row) for row in table.to_pylist()]
            other = [replace(record, image=picture(32, 32)["bytes"]) for record in records]
            footer = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
            identity = footer.pop(layout.IDENTITY_KEY.decode())
            parquet.write_records(Folder(str(out)), name, MODEL, arm, other, identity, footer)
    assert workflow.verify(str(out), again=1) == 1
    said = capsys.readouterr().out
    assert "differs by up to" in said
    assert "equal within" not in said


def content_of(file: Path) -> object:
    """What a file says, without what only its seal says."""
    content = file.read_bytes()
    if file.suffix == ".parquet":
        opened = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        footer = opened.metadata.metadata or {}
        said = {k: v for k, v in footer.items() if k != b"ARROW:schema" and len(v) != 64}
        return opened.read().to_pylist(), opened.schema_arrow.names, said
    if file.suffix == ".npz":
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            return {name: held[name].tobytes() for name in held.files}
    if file.suffix in (".json", ".jsonl"):
        lines = [content] if file.suffix == ".json" else content.splitlines()
        return [
            [one for one in json.loads(line).items() if len(str(one[1])) != 64] for line in lines
        ]
    return content


KINDS = {  # of files -> how many of their bytes are flipped, one at a time
    layout.CARD: 2,
    layout.RUN: 4,
    layout.LEDGER: 4,
    layout.HISTORY: 3,
    PROMPTS: 12,
    shard(): 16,
    figures("rows"): 12,
    figures("psnr"): 8,
    FEATURES: 6,
    STATISTICS: 3,
    TOTAL: 4,
    REFERENCE: 3,
    SCORES: 3,
    layout.REPORT_JSON: 3,
    layout.REPORT_MARKDOWN: 2,
    layout.REPORT_PAGE: 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_byte_is_found_or_changes_nothing_and_a_repair_mends_it(
    out, sound, settings, name
):
    chance, whole = np.random.default_rng(0), (out / name).read_bytes()
    known, mended = content_of(out / name), False
    # The later half holds a Parquet file's footer.
    places = chance.integers(0, len(whole), KINDS[name]).tolist()
    places += chance.integers(len(whole) // 2, len(whole), KINDS[name]).tolist()
    for place in places:
        flip(out / name, place)
        found, _ = verify(str(out))
        if not found.faults:
            assert content_of(out / name) == known, f"byte {place} was not noticed"
        elif not mended:
            mended = True
            assert workflow.verify(str(out), repair=True) == 1
            rendered(out, settings)
            assert lines_of(out)[-1].startswith("ok: "), f"byte {place} was not mended"
            assert pictures(out) == pictures(sound)
            shutil.rmtree(out)
            shutil.copytree(sound, out)
        (out / name).write_bytes(whole)
    assert mended


def test_a_missing_shard_is_no_damage_and_the_next_run_makes_it(out, settings):
    (out / shard()).unlink()
    assert workflow.verify(str(out)) == 1
    assert lines_of(out)[-1] == "not ok: 1 missing; tgate-batch render makes what is missing"
    rendered(out, settings)
    assert workflow.verify(str(out)) == 0


def test_an_arm_that_left_the_config_is_no_fault_and_is_checked_all_the_same(out, settings):
    rendered(out, settings, arms={"baseline": {}})
    assert workflow.verify(str(out)) == 0
    # The baseline that it was compared with may go, too.
    again = config.parse(
        settings
        | {"output": str(out), "arms": {"baseline": {"deepcache": {"interval": 2, "branch": 0}}}}
    )
    assert workflow.render(again, replace_stale=True) == 0
    assert workflow.verify(str(out)) == 0
    flip_in_page(out / shard(), "image.bytes")
    found, _ = verify(str(out))
    assert [fault.name for fault in found.faults] == [shard()]


def test_the_command_says_what_it_checked_and_ends_with_1_for_damage(out):
    flip_in_page(out / shard(), "image.bytes")
    done = subprocess.run(
        [sys.executable, "jobs/verify.py", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{out}: checking provenance, prompts and files ..."
    assert lines[1].split() == ["checked", "how", "many", "faults"]
    assert lines[5].split() == ["files", "of", "images", "6", "1"]
    assert lines[-2].startswith(f"damaged: {shard()}: cannot be read: ")
    assert lines[-1].startswith("not ok: 1 damaged; --repair removes")


def test_a_repair_removes_nothing_that_only_the_storage_could_not_give(out, monkeypatch, capsys):
    whole = Folder.open
    failures = {shard(): 2, SCORES: 99}  # one is back for the second look, one stays away

    def failing(folder: Folder, name: str):
        if failures.get(name, 0) > 0:
            failures[name] -= 1
            raise OSError("the store does not answer")
        return whole(folder, name)

    before = names(out)
    monkeypatch.setattr(Folder, "open", failing)
    assert workflow.verify(str(out), repair=True) == 1
    assert names(out) == before
    said = capsys.readouterr().out
    assert f"left alone: {shard()}: cannot be read: the store does not answer" in said
    assert said.splitlines()[-1] == "files removed: 0; left to you: 2"


def test_checking_changes_nothing(out):
    flip_in_page(out / shard(), "image.bytes")
    before = {name: (out / name).read_bytes() for name in names(out)}
    assert workflow.verify(str(out)) == 1
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_a_run_at_work_is_not_checked(out):
    with output_lock(Folder(str(out))):
        for repair in (False, True):
            with pytest.raises(UserError, match=f"is in use: process {os.getpid()} on"):
                workflow.verify(str(out), repair=repair)


def test_the_claim_of_a_dead_run_is_no_fault(out, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    left = {"host": "elsewhere", "pid": 7, "since": "then", "token": "0123456789abcdef" * 2}
    for name in (layout.CLAIM, layout.claim_key(left["token"])):
        (out / name).write_text(json.dumps(left))
    assert workflow.verify(str(out)) == 0


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no run"):
        workflow.verify(str(tmp_path))


def test_twenty_faults_are_shown_and_the_others_counted(out):
    for number in range(25):
        (out / f"note-{number:02d}.txt").write_text("")
    lines = lines_of(out)
    assert sum(line.startswith("foreign: ") for line in lines) == 20
    assert lines[-2:] == ["and 5 more", "not ok: 25 foreign"]


def test_long_checks_say_how_far_they_are(out, monkeypatch, capsys):
    monkeypatch.setattr("tgate_batch.execute.progress._SECONDS_BETWEEN_LINES", 0)
    verify(str(out))
    lines = capsys.readouterr().out.splitlines()
    pictures = [f"checking: {count} of 6 files of images" for count in range(1, 7)]
    assert lines[:6] == pictures
    left = len(lines) - 6
    assert left > 0
    assert lines[-1] == f"checking: {left} of {left} files of sums and statistics"


def test_pictures_are_told_as_they_are_drawn_again(out, capsys):
    assert workflow.verify(str(out), again=1) == 0
    lines = capsys.readouterr().out.splitlines()
    begun = lines.index("rendering 1 image of every arm again, in another process ...")
    assert [line.split(":")[0].split("/")[0].split()[1] for line in lines[begun + 1 : -1]] == [
        "baseline",
        "tgate",
    ]
    assert lines[-1] == "2 images rendered again, 2 alike (bit for bit)"


def test_drawing_again_runs_no_code_but_plugins_that_the_user_names(
    out, tmp_path_factory, monkeypatch, capsys
):
    """Somebody verifies a stranger's output where it was unpacked, beside modules of many names."""
    places = tmp_path_factory.mktemp("places")
    code = f"import pathlib; pathlib.Path({str(places)!r}, __name__).touch()\n"
    for name in ("theirs", "psutil", "yaml", "sitecustomize"):
        (out.parent / f"{name}.py").write_text(code)
    (places / "mine").mkdir()
    metric = "from tgate_batch.metrics.psnr import METRIC\n"
    (places / "mine" / "ours.py").write_text(code + metric)
    in_sealed_json(out / layout.RUN, lambda run: run["config"].update(plugins=["theirs", "ours"]))
    monkeypatch.chdir(out.parent)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{out.parent}")
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(places / "mine")])
    assert workflow.verify(str(out), again=1, trusted=["ours"]) == 0
    assert sorted(file.name for file in places.iterdir()) == ["mine", "ours"]
    said = capsys.readouterr().err
    assert "the plugin theirs, which is code and is not imported. Fix: " in said
    assert "plugin ours" not in said
