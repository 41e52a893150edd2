import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pyarrow.dataset as ds
import pytest
import ray
import ray.exceptions

from benchmarks.stand_in import StandIn
from tgate_batch import config, workflow
from tgate_batch.errors import NoRoom, UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.cluster import Cluster, address_to_join, first_sentence
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.ray import (
    RayExecutor,
    classify_error,
    memory_message,
    start,
    why_not_started,
)
from tgate_batch.execute.scoring import measure_pending
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.records import ShardResult
from tgate_batch.render.timing import BESIDE, ON_DEVICE
from tgate_batch.score.measurement_plan import MeasurementPlan


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    start()
    yield
    ray.shutdown()


def begun(settings, **sections):
    run = workflow.prepare(config.parse({**settings, **sections}))
    runs.begin_run(run)
    return run


def rendered_by(executor, run):
    """Receipts of all that is pending, as they come."""
    pool = rendering.render_pool(run, runs.pending(run))
    for found in executor.run(pool):
        if isinstance(found, ShardResult):
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
    with RayExecutor(run.config, run.folder, first, on_workers_changed=held.append) as executor:
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
        assert measure_pending(run, MeasurementPlan.of(run), executor) == {}
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
    with pytest.raises(UserError, match="each needs 4096 CPU"):
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
    assert "another version of tgate_batch" in told
    assert "another version of tgate_batch" not in why_not_started(
        RuntimeError("AttributeError: 'cuda'")
    )


def every(kind):
    """A class and all that are derived from it."""
    return {kind}.union(*(every(derived) for derived in kind.__subclasses__()))


WORKERS = """
ActorAlreadyExistsError ActorDiedError ActorHandleNotFoundError ActorPlacementGroupRemoved
ActorUnavailableError ActorUnschedulableError AsyncioActorExit AuthenticationError
CrossLanguageError GetTimeoutError LocalRayletDiedError NodeDiedError ObjectFetchTimedOutError
ObjectFreedError ObjectLostError ObjectReconstructionFailedError ObjectRefStreamEndOfStreamError
ObjectStoreFullError OufOfBandObjectRefSerializationException OutOfDiskError OwnerDiedError
PendingCallsLimitExceeded PlasmaObjectNotAvailable RayActorError RayCgraphCapacityExceeded
RayChannelError RayChannelTimeoutError RayDirectTransportError RayError RaySystemError
ReferenceCountingAssertionError RpcError RuntimeEnvSetupError
StreamingGeneratorReplayInconsistentError TaskCancelledError TaskPlacementGroupRemoved
TaskUnschedulableError UnserializableException UserCodeException WorkerCrashedError
"""
KINDS = {"task": {"RayTaskError"}, "memory": {"OutOfMemoryError"}, "worker": set(WORKERS.split())}


def test_every_exception_of_ray_is_an_event_of_the_pool():
    found = {"task": set(), "memory": set(), "worker": set()}
    for kind in every(ray.exceptions.RayError):
        if kind.__module__ == "ray.exceptions" and "(" not in kind.__name__:  # made for a cause
            found[classify_error(kind.__new__(kind))].add(kind.__name__)
    assert found == KINDS, "Ray has another exception: does the pool do what is right?"


ENDED = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.2, ID: f24a4ed16fa091e310f72177080fb18776506af518c30006205c1cdb) was 22.91GB used / "
    "24.00GB limit (0.954321), which exceeds the memory usage threshold."
)


def test_a_worker_ended_for_memory_is_told_in_one_line():
    assert memory_message(ray.exceptions.OutOfMemoryError(ENDED)) == (
        "its machine ran out of memory (22.91GB of 24.00GB in use). Fix: lower workers.max or "
        "sampling.batch_size, or use machines with more memory"
    )


HELP = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: _RayWorker\n\tactor_id:"
    " 3a\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due "
    "to high memory usage. (2) ray stop --force is called. (3) The worker is crashed unexpectedly "
    "due to SIGSEGV or other unexpected errors."
)


def test_a_worker_that_did_not_start_is_told_by_the_first_sentence():
    assert why_not_started(RuntimeError(HELP)) == (
        "The actor died unexpectedly before finishing this task (Worker unexpectedly exits with a "
        "connection error code 2)"
    )
    trace = "ray::_RayWorker.__init__() (pid=1)\n  File a.py, line 3\nOSError: no such disk\n"
    assert why_not_started(RuntimeError(trace)) == "OSError: no such disk"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Version 2.5 is not 2.6.1. Do this. Do that.", "Version 2.5 is not 2.6.1"),
        ("no stop at all", "no stop at all"),
        ("one line\nanother.", "one line"),
        ("", "RuntimeError"),
    ],
)
def test_first_sentence(text, first):
    assert first_sentence(RuntimeError(text)) == first


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://head:8265", "ray job submit, or set RAY_ADDRESS to head:6379"),
        ("ray://head:10001", "RAY_ADDRESS to head:6379"),
        ("head", "is not HOST:PORT"),
        ("auto", "no Ray runs on this machine"),
    ],
)
def test_an_address_that_no_run_can_join_is_one_line(monkeypatch, tmp_path, address, said):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(said)) as error:
        address_to_join()
    assert "\n" not in str(error.value)


def test_a_server_that_is_no_ray_is_refused_before_ray_waits_for_it(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as web:
        port = web.getsockname()[1]

        def answer():
            connection, _ = web.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(UserError, match="no Ray answers there"):
            address_to_join()
    with pytest.raises(UserError, match="no Ray answers there"):  # nobody listens any more
        address_to_join()


def test_the_ray_that_runs_on_this_machine_is_joined_with_a_line(monkeypatch, tmp_path, capsys):
    """The local Ray of these tests stands for one that ``ray start`` wrote down."""
    address = ray.get_runtime_context().gcs_address
    folder = tmp_path / "ray"
    folder.mkdir()
    (folder / "ray_current_cluster").write_text(address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS")
    assert address_to_join() == address
    line = f"joining the Ray that runs on this machine ({address}); RAY_ADDRESS=local starts a "
    assert capsys.readouterr().out.startswith(line)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert address_to_join() is None
    monkeypatch.delenv("RAY_ADDRESS")
    (folder / "ray_current_cluster").write_text("127.0.0.1:9")  # of a Ray that is gone
    assert address_to_join() is None


def test_a_run_that_waits_for_room_says_so_and_ends_at_its_limit(monkeypatch, capsys):
    found = Cluster(config.Workers(cpus_each=1, room_within=0.05))
    try:
        found.check(is_placed=True)
        assert not found.is_waited_for
        found._nodes = {"head": {"CPU": 0.0}}
        monkeypatch.setattr(found, "_query", lambda: None)
        found.check(is_placed=False)
        assert found.is_waited_for
        line = (
            "waiting for resources: a worker needs 0 GPU and 1 CPU, the cluster has 0 GPU and 0 CPU"
        )
        assert capsys.readouterr().out.splitlines() == [line]
        time.sleep(0.1)
        with pytest.raises(NoRoom, match=r"raise workers\.room_within"):
            found.check(is_placed=False)
    finally:
        found.close()


def test_a_node_without_memory_gets_no_further_worker():
    found = Cluster(config.Workers(cpus_each=1))
    try:
        found._nodes = {"a": {"CPU": 8.0}, "b": {"CPU": 2.0}}
        assert found.room == 10
        found.limit("a", 3)
        assert found.room == 5
        assert found.full(["a", "a", "b"]) == []
        assert found.full(["a", "a", "a", "b"]) == ["a"]
        found.limit("a", 7)  # it has been too many before
        assert found.room == 5
    finally:
        found.close()


def test_a_ray_that_does_not_start_is_one_line_and_exit_code_4(tmp_path):
    code = (
        "from tgate_batch.cli.job import run_as_job\n"
        "from tgate_batch.execute.cluster import start\n"
        "run_as_job(start)"
    )
    deep = tmp_path / ("x" * 100)  # the name of a socket in it is too long
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(deep)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Ray did not start on this machine: ")
