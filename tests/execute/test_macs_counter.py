"""MACs are counted once for a run, whichever workers draw."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.macs_counter import MacsCounter
from tgate_batch.execute.pool import Send
from tgate_batch.execute.ray import RayExecutor
from tgate_batch.execute.task import RenderOrder
from tgate_batch.models.macs import arm as macs
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


def begun(mixed, **workers):
    run = workflow.prepare(config.parse(mixed.model_dump() | {"workers": workers}))
    runs.begin_run(run)
    return run


def test_each_arm_and_kind_of_rows_is_counted_once_and_by_no_worker(mixed, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(macs, "macs_of_arm", logged(log))
    run = begun(mixed, min=2, max=2)

    def open_runner(model, settings):  # in each worker, which has not this module
        from tgate_batch.models import pipeline_runner
        from tgate_batch.models.macs import arm as macs

        def told(*_):
            with log.open("a") as stream:
                stream.write("a worker\n")

        macs.macs_of_arm = told
        return pipeline_runner.open_runner(model, settings)

    pending = runs.pending(run)
    with (
        MacsCounter(run) as counts,
        RayExecutor(run.config, run.folder, run.config.models[0], open_runner) as executor,
    ):
        counts.start(pending)
        list(executor.run(rendering.render_pool(run, pending, macs=counts.of)))
    assert sorted(log.read_text().splitlines()) == sorted(
        f"{os.getpid()} {gate} {width} {steps}"
        for gate in (None, 2)
        for width, steps in (kind.split(",") for kind in KINDS)
    )
    check(run)


@pytest.mark.parametrize("gpus", [0, 1])
def test_workers_with_gpus_alone_are_told_the_counts(mixed, gpus):
    """Without GPUs the driver has no need of torch, whose import takes longer than to count."""
    run = begun(mixed, gpus_each=gpus)
    executor = _Sent()
    rendering.render_pending(run, runs.pending(run), executor)
    assert executor.orders
    for order in executor.orders:
        assert bool(order.macs) == bool(gpus)


class _Sent:
    """An executor that keeps its orders, and does nothing."""

    apart = True
    waits_for = ""
    orders: list[RenderOrder]

    def run(self, pool):
        pool.joined("a worker")
        self.orders = [each.task.order() for each in pool.decide() if isinstance(each, Send)]
        return iter(())


def test_a_worker_counts_what_the_driver_cannot(mixed, monkeypatch):
    run = begun(mixed, executor="local")

    def away(*_):
        raise UserError("the architecture is not known without its files")

    monkeypatch.setattr(macs, "macs_of_arm", away)
    with MacsCounter(run) as counts:
        counts.start(runs.pending(run))
        shard = run.shards[0]
        assert counts.of(run.config.models[0], "baseline", shard.batch_key) is None
        monkeypatch.undo()
        with workflow.open_executor(run.config, run.folder) as executor:
            list(executor.run(rendering.render_pool(run, runs.pending(run), macs=counts.of)))
    check(run)


def check(run) -> None:
    """Every file says what ``macs_of_arm`` counts for its arm and kind of rows."""
    (model,) = run.config.models
    found = files(run.config.output)
    assert len(found) == 18
    for (arm, index), footer in found.items():
        kind = run.shards[index].batch_key
        sampling = config.effective_sampling(run.sampling(model.name), row=kind)
        counted = COUNTED(model, run.config.arms[arm], sampling)
        assert footer["macs_per_image"] == str(counted.per_image)
