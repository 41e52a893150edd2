import json
import os
import shutil
import signal
from types import SimpleNamespace

import pyarrow.dataset as ds
import pytest
import ray

from benchmarks.stand_in import StandIn
from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.ray import RayExecutor, start, why_not_started
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.records import Receipt
from tgate_batch.render.time_sheet import BESIDE, ON_DEVICE
from tgate_batch.score.measurements import Measurements


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start()
    yield
    ray.shutdown()


def begun(settings, **sections):
    run = workflow.prepare(config.parse({**settings, **sections}))
    runs.begin(run)
    return run


def rendered_by(executor, run):
    """Receipts of all that is pending, as they come."""
    pool = rendering.tasks(run, runs.pending(run))
    for found in executor.run(pool):
        if isinstance(found, Receipt):
            yield found
    executor.deaths = pool.deaths


def render(settings, **sections):
    run = begun(settings, **sections)
    with RayExecutor(run.config, run.folder, run.config.models[0]) as executor:
        return run, list(rendered_by(executor, run))


def pictures(output, arm):
    """(prompt id, image bytes) of an arm, sorted."""
    rows = ds.dataset(f"{output}/images", format="parquet").to_table().to_pylist()
    return sorted((r["prompt_id"], r["image"]["bytes"]) for r in rows if r["arm"] == arm)


@pytest.fixture(scope="module")
def rendered(tiny, tmp_path_factory):
    """A finished run of one worker: its settings, its folder and its receipts."""
    here = tmp_path_factory.mktemp("rendered")
    captions = here / "captions.csv"
    captions.write_text("id,caption\n" + "".join(f"c{i},a picture of {i}\n" for i in range(10)))
    settings = {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(captions), "shard_size": 4},
        "sampling": {"steps": 4, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 2}},
        "workers": {"max": 1},
        "output": str(here / "out"),
    }
    run, receipts = render(settings)
    return settings, run, receipts


def test_every_prompt_is_in_every_arm_once_and_nothing_is_left_to_do(rendered):
    settings, run, receipts = rendered
    assert sorted((r.arm, r.shard, r.images, r.errors) for r in receipts) == [
        (arm, shard, size, 0)
        for arm in ("baseline", "tgate")
        for shard, size in enumerate((4, 4, 2))
    ]
    for arm in ("baseline", "tgate"):
        found = [identity for identity, _ in pictures(settings["output"], arm)]
        assert found == [f"c{i}" for i in range(10)]
    assert runs.pending(run) == {"sd15": {}}


def test_worker_says_where_its_time_went(rendered):
    _, run, _ = rendered
    (name,) = run.folder.names(layout.WORKERS, ".json")
    seconds = json.loads(run.folder.read(name))["seconds"]
    assert all(seconds[stage] > 0 for stage in (*ON_DEVICE, *BESIDE))
    assert sum(seconds[stage] for stage in ON_DEVICE) <= seconds["wall"]


def test_run_in_this_process_gives_the_same_bytes(rendered, tmp_path):
    settings, _, _ = rendered
    output = str(tmp_path / "local")
    run = begun(settings, output=output, workers={"executor": "local"})
    executor = LocalExecutor(run.config, run.folder)
    assert len(list(rendered_by(executor, run))) == 6
    for arm in ("baseline", "tgate"):
        assert pictures(output, arm) == pictures(settings["output"], arm)


def test_killed_worker_costs_nothing_but_time_and_two_fill_the_gaps(rendered, tmp_path):
    settings, _, _ = rendered
    here = shutil.copytree(settings["output"], tmp_path / "out")
    gaps = [("baseline", 1), ("baseline", 2), ("tgate", 0), ("tgate", 1), ("tgate", 2)]
    for arm, shard in gaps:
        os.remove(here / layout.shard_file(layout.images("sd15", arm), shard))
    run = begun(settings, workers={"min": 2, "max": 2}, output=str(here))
    receipts, held = [], []
    first = run.config.models[0]
    with RayExecutor(run.config, run.folder, first, held=held.append) as executor:
        for receipt in rendered_by(executor, run):
            receipts.append((receipt.arm, receipt.shard))
            if len(receipts) == 1:
                os.kill(executor.pids()[0], signal.SIGKILL)
        assert executor.deaths == 1
    assert max(held) == min(2, os.cpu_count())
    assert sorted(receipts) == gaps
    for arm in ("baseline", "tgate"):
        assert pictures(here, arm) == pictures(settings["output"], arm)


def test_worker_killed_while_measuring_costs_nothing_but_time(rendered, tmp_path, monkeypatch):
    settings, _, _ = rendered
    here = shutil.copytree(settings["output"], tmp_path / "out")
    run = begun(settings, output=str(here))
    with RayExecutor(run.config, run.folder) as executor:
        delivered = SimpleNamespace(count=0)

        def killing(pool, collect=executor.run):
            for found in collect(pool):
                if found is not None:
                    delivered.count += 1
                    if delivered.count == 1:
                        os.kill(executor.pids()[0], signal.SIGKILL)
                yield found

        monkeypatch.setattr(executor, "run", killing)
        assert workflow.measure_pending(run, Measurements.of(run), executor) == {}
    for metric in ("rows", "psnr", "ssim"):
        stand = run.folder.names(layout.measured(metric, "sd15", "tgate"))
        assert len(stand) == 3


@pytest.mark.slow
def test_model_that_cannot_be_loaded_stops_the_run_with_its_reason(settings, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="sd15 cannot be loaded"):
        render(settings, models=[{"name": "sd15", "path": str(folder)}])


def test_worker_that_cannot_start_does_not_end_the_run_of_another(settings, tmp_path):
    marker = tmp_path / "first"

    def open_runner(model, config):
        if marker.exists():
            raise UserError("this machine is out of order")
        marker.touch()
        return StandIn(model, config)

    run = begun(settings, arms={"baseline": {}}, workers={"min": 2, "max": 2})
    first = run.config.models[0]
    with RayExecutor(run.config, run.folder, first, open_runner) as executor:
        assert sorted(r.shard for r in rendered_by(executor, run)) == [0, 1, 2]


def test_worker_that_fits_no_machine_is_refused(settings):
    with pytest.raises(UserError, match="each asks 4096 CPU"):
        render(settings, workers={"cpus_each": 4096})


@pytest.mark.parametrize(
    "said",
    [
        "AttributeError: Can't get attribute '_RayWorker' on <module 'tgate_batch.execute.ray'>",
        "ModuleNotFoundError: No module named 'tgate_batch'",
        "AttributeError: module 'tgate_batch.execute.ray' has no attribute 'x'",
    ],
)
def test_other_package_on_the_clusters_machines_is_told(said):
    told = why_not_started(RuntimeError(f"ray::begin() (pid=1)\n  File a.py, line 1\n{said}"))
    assert told.startswith(said)
    assert "another tgate_batch" in told
    assert "another tgate_batch" not in why_not_started(RuntimeError("AttributeError: 'cuda'"))
