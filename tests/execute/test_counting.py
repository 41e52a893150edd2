"""MACs are counted once for a run, whichever workers draw."""

import os
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.counting import Counts
from tgate_batch.execute.ray import RayExecutor
from tgate_batch.models import macs
from tgate_batch.output import run as runs

KINDS = ("32,4", "48,4", "32,3")  # width, steps
COUNTED = macs.macs_of_arm


@pytest.fixture
def mixed(settings, tmp_path) -> config.Config:
    """Nine rows of three kinds in shards of one row, under two arms."""
    file = tmp_path / "mixed.csv"
    rows = [f"c{n},a picture of {n},{KINDS[n % 3]}\n" for n in range(9)]
    file.write_text("id,caption,width,steps\n" + "".join(rows))
    return config.parse(settings | {"prompts": {"path": str(file), "shard_size": 1}})


def logged(log: Path):
    def macs_of_arm(model, arm, sampling):
        with log.open("a") as stream:
            stream.write(f"{os.getpid()} {arm.gate_step} {sampling.width} {sampling.steps}\n")
        return COUNTED(model, arm, sampling)

    return macs_of_arm


def files(output: str) -> dict[tuple[str, int], dict[str, str]]:
    found = {}
    for file in Path(output, "images").glob("*/*/*.parquet"):
        footer = {k.decode(): v.decode() for k, v in pq.read_schema(file).metadata.items()}
        found[file.parent.name, int(file.stem.rpartition("-")[2])] = footer
    return found


def test_each_arm_and_kind_of_rows_is_counted_once(mixed, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(macs, "macs_of_arm", logged(log))
    run = workflow.prepare(config.parse(mixed.model_dump() | {"workers": {"executor": "local"}}))
    runs.begin(run)
    with workflow.open_executor(run.config, run.folder) as executor:
        rendering.rendered(run, runs.pending(run), executor)
    assert sorted(Counter(log.read_text().splitlines()).values()) == [1] * 6
    check(run)


def test_no_worker_counts_what_the_driver_can(mixed, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(macs, "macs_of_arm", logged(log))
    run = workflow.prepare(
        config.parse(mixed.model_dump() | {"workers": {"min": 2, "max": 2, "gpus_each": 0}})
    )
    runs.begin(run)

    def open_runner(model, settings):  # in each worker, which has not this module
        from tgate_batch.models import macs, runner

        def told(*_):
            with log.open("a") as stream:
                stream.write("a worker\n")

        macs.macs_of_arm = told
        return runner.open_runner(model, settings)

    with RayExecutor(run.config, run.folder, run.config.models[0], open_runner) as executor:
        rendering.rendered(run, runs.pending(run), executor)
    lines = log.read_text().splitlines()
    assert len(lines) == 6
    assert {line.split()[0] for line in lines} == {str(os.getpid())}
    check(run)


def test_a_worker_counts_what_the_driver_cannot(mixed, monkeypatch):
    run = workflow.prepare(config.parse(mixed.model_dump() | {"workers": {"executor": "local"}}))
    runs.begin(run)

    def away(*_):
        raise UserError("the architecture is not known without its files")

    monkeypatch.setattr(macs, "macs_of_arm", away)
    with Counts(run) as counts:
        counts.ahead(runs.pending(run))
        shard = run.shards[0]
        assert counts.of(run.config.models[0], "baseline", shard.kind) is None
        monkeypatch.undo()
        with workflow.open_executor(run.config, run.folder) as executor:
            list(executor.run(rendering.tasks(run, runs.pending(run), macs=counts.of)))
    check(run)


def check(run) -> None:
    """Every file says what ``macs_of_arm`` counts for its arm and kind of rows."""
    (model,) = run.config.models
    found = files(run.config.output)
    assert len(found) == 18
    for (arm, index), footer in found.items():
        kind = run.shards[index].kind
        sampling = run.sampling(model.name).of_kind(kind)
        counted = COUNTED(model, run.config.arms[arm], sampling)
        assert footer["macs_per_image"] == str(counted.per_image)
