"""What a finished output folder is to others: to readers, to a second driver, to a later run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute.ray import start
from tgate_batch.execute.rerender import rerender
from tgate_batch.output import card, layout
from tgate_batch.output.lock import output_lock
from tgate_batch.output.run import load_run
from tgate_batch.storage import Folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run_file(tiny, tmp_path_factory) -> Path:
    """The config of a run of 6 prompts in 6 shards with two arms, without Ray."""
    here = tmp_path_factory.mktemp("finished")
    (here / "captions.txt").write_text("".join(f"picture {i}\n" for i in range(6)))
    settings = {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(here / "captions.txt"), "shard_size": 1},
        "sampling": {"steps": 4, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 2}},
        "workers": {"executor": "local"},
        "score": {"reference": None},
        "output": str(here / "out"),
    }
    file = here / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def finished(run_file) -> Path:
    """The output folder of that run."""
    settings = config.load(run_file)
    assert workflow.render(settings) == 0
    return Path(settings.output)


def files(output, arm) -> list[Path]:
    return list((Path(output) / layout.images("sd15", arm)).glob("*.parquet"))


def pictures(output, arm) -> dict[str, bytes]:
    rows = [row for file in files(output, arm) for row in pq.read_table(file).to_pylist()]
    return {row["prompt_id"]: row["image"]["bytes"] for row in rows}


def with_pandas(folder):
    return pd.read_parquet(folder / "images")[["model", "arm"]]


def with_arrow(folder):
    return ds.dataset(folder / "images", format="parquet").to_table().select(["model", "arm"])


def with_arrow_hive(folder):
    table = ds.dataset(folder / "images", format="parquet", partitioning="hive").to_table()
    return table.select(["model", "arm"])


def with_polars(folder):
    import polars

    return polars.read_parquet(folder / "images").select("model", "arm")


def with_polars_glob(folder):
    import polars

    return polars.scan_parquet(f"{folder}/images/**/*.parquet").select("model", "arm").collect()


def with_duckdb(folder, hive):
    import duckdb

    files = f"{folder}/{layout.IMAGE_FILES}"
    return duckdb.sql(
        f"select model, arm from read_parquet('{files}', hive_partitioning = {hive})"
    ).df()


def with_ray_data(folder):
    import ray

    start()
    try:
        return ray.data.read_parquet(str(folder / "images")).to_pandas()[["model", "arm"]]
    finally:
        ray.shutdown()


def with_datasets(folder):
    import datasets

    rows = datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))["train"]
    assert rows[0]["image"].size == (32, 32)
    return rows.to_pandas()[["model", "arm"]]


@pytest.mark.parametrize(
    "reader",
    [
        with_pandas,
        with_arrow,
        with_arrow_hive,
        with_polars,
        with_polars_glob,
        partial(with_duckdb, hive=True),
        partial(with_duckdb, hive=False),
        with_ray_data,
        with_datasets,
    ],
    ids=lambda reader: str(getattr(reader, "keywords", "") or reader.__name__),
)
def test_every_reader_gets_model_and_arm_as_columns_and_all_rows(finished, reader):
    table = reader(finished)
    frame = table if isinstance(table, pd.DataFrame) else table.to_pandas()
    counts = frame.astype(str).value_counts().to_dict()
    assert counts == {("sd15", "baseline"): 6, ("sd15", "tgate"): 6}


def version(folder: Folder) -> bytes:
    return next(line for line in folder.read(layout.CARD).splitlines() if b"version:" in line)


def test_card_has_another_version_when_the_files_change(finished, tmp_path):
    folder = Folder(str(shutil.copytree(finished, tmp_path / "copy")))
    before = folder.read(layout.CARD), version(folder)
    card.write(folder)
    assert (folder.read(layout.CARD), version(folder)) == before
    folder.delete(layout.shard_file(layout.images("sd15", "tgate"), 0))
    card.write(folder)
    assert version(folder) != before[1]


def test_datasets_serves_what_is_there_and_not_what_it_once_read(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert len(with_datasets(folder)) == 12
    (folder / layout.shard_file(layout.images("sd15", "tgate"), 0)).unlink()
    card.write(Folder(str(folder)))
    assert len(with_datasets(folder)) == 11


def test_what_the_card_says_of_opening_works_in_the_folder(finished, monkeypatch, tmp_path):
    import datasets

    monkeypatch.chdir(finished)
    cache = str(tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset", partial(datasets.load_dataset, cache_dir=cache))
    said = re.findall(r"```python\n(.*?)```", Path(layout.CARD).read_text(), flags=re.DOTALL)
    ways: list[dict] = []
    for code in said:
        names: dict = {}
        exec(code, names)
        ways.append(names)
    loaded, in_pandas, in_duckdb, in_polars = ways
    assert len(loaded["rows"]) == len(in_pandas["rows"]) == len(in_polars["rows"]) == 12
    assert in_pandas["image"].size == (32, 32)
    assert sorted(in_duckdb["rows"].fetchall()) == [
        ("sd15", "baseline", "ok", 6),
        ("sd15", "tgate", "ok", 6),
    ]


def test_stored_pictures_are_drawn_again_from_the_output_folder_alone(finished):
    found = list(rerender(load_run(str(finished)), 2))
    assert [(drawn.arm, drawn.same_bytes, drawn.levels, drawn.exact) for drawn in found] == [
        (arm, True, 0, True) for arm in ("baseline", "baseline", "tgate", "tgate")
    ]


@pytest.mark.parametrize("what", ["threads", "processor", "versions", "invariant"])
def test_a_level_apart_is_alike_only_where_another_machine_drew_or_rows_depend_on_their_place(
    finished, tmp_path, what
):
    folder = shutil.copytree(finished, tmp_path / "elsewhere")
    for file in files(folder, "baseline"):
        table = pq.read_table(file)
        maker = json.loads(table.schema.metadata[b"made_by"])
        maker[what] = False if what == "invariant" else "another"
        metadata = table.schema.metadata | {b"made_by": json.dumps(maker).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), file)
    found = {drawn.arm: drawn for drawn in rerender(load_run(str(folder)), 1)}
    assert not found["baseline"].exact
    assert found["tgate"].exact
    one_apart = {name: replace(drawn, levels=1) for name, drawn in found.items()}
    assert one_apart["baseline"].alike
    assert not one_apart["tgate"].alike


def test_drawing_again_cannot_reach_the_network():
    code = (
        "import urllib.request, tgate_batch.execute.rerender as again\n"
        "again._disable_network()\n"
        "try: urllib.request.urlopen('http://127.0.0.1:9')\n"
        "except OSError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "renders from the output folder alone, without the network" in done.stdout


def test_changed_picture_is_found_when_it_is_drawn_again(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "changed")
    for file in files(folder, "baseline"):
        table = pq.read_table(file)
        other = pq.read_table(folder / layout.images("sd15", "tgate") / file.name)
        column = table.schema.get_field_index("image")
        pq.write_table(table.set_column(column, table.field(column), other["image"]), file)
    found = {drawn.arm: drawn.levels for drawn in rerender(load_run(str(folder)), 1)}
    assert found["baseline"] > 1
    assert found["tgate"] == 0


def test_other_gate_in_an_arm_that_came_back_is_refused_and_replaced_when_asked(
    finished, run_file, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "out")
    before = pictures(folder, "baseline"), pictures(folder, "tgate")
    workflow.render(config.load(run_file, [f"output={folder}", "arms={baseline: {}}"]))
    changed = [f"output={folder}", "arms.tgate.gate_step=3"]
    with pytest.raises(UserError, match="arm tgate of sd15 has gate_step 2 there and 3 in the"):
        workflow.render(config.load(run_file, changed))
    assert pictures(folder, "tgate") == before[1]
    # A kill in the middle of the replacing: the run after it needs no further word.
    command = [sys.executable, "jobs/render.py", "--config", str(run_file), "--replace-stale"]
    for setting in changed:
        command += ["--set", setting]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        while driver.poll() is None and len(files(folder, "tgate")) != 2:
            time.sleep(0.01)
        driver.send_signal(signal.SIGKILL)
    assert len(files(folder, "tgate")) < 6
    assert workflow.render(config.load(run_file, changed)) == 0
    assert pictures(folder, "baseline") == before[0]
    after = pictures(folder, "tgate")
    assert after.keys() == before[1].keys()
    assert all(after[key] != before[1][key] for key in after)


def test_second_driver_is_refused_by_name(finished, run_file, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    settings = config.load(run_file, [f"output={folder}"])
    with output_lock(Folder(str(folder))):
        assert workflow.report(settings) == 0  # reading disturbs nobody
        for refused in (workflow.score, workflow.render):
            with pytest.raises(UserError) as caught:
                refused(settings)
            said = f"process {os.getpid()} on {socket.gethostname()} has worked there since"
            assert said in str(caught.value)
