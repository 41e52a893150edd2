"""Several Ray nodes on this machine, with a stand-in pipeline that takes its time."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.dataset as ds
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _internal_kv_get

from benchmarks.stand_in import StandIn
from tgate_batch import config, workflow
from tgate_batch.execute import rendering
from tgate_batch.execute.cluster import stop
from tgate_batch.execute.ray import RayExecutor, start
from tgate_batch.output import run as runs
from tgate_batch.records import ShardResult


def slow_runner(seconds):
    """Opens a stand-in that takes so long for a batch."""

    def open_runner(model, config):
        class Slow(StandIn):
            def denoise(self, conditions, seeds):
                time.sleep(seconds)
                return super().denoise(conditions, seeds)

        return Slow(model, config)

    return open_runner


@pytest.fixture
def cluster(monkeypatch):
    """A head without a CPU for workers, which this process has joined."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    start()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def begun(settings, **sections):
    run = workflow.prepare(config.parse({**settings, "arms": {"baseline": {}}, **sections}))
    runs.begin_run(run)
    return run


def drawn_by(executor, run):
    """(arm, shard) of each receipt, as they come."""
    for found in executor.run(rendering.render_pool(run, runs.pending(run))):
        if isinstance(found, ShardResult):
            yield found.arm, found.shard


def rows(settings):
    found = ds.dataset(f"{settings['output']}/images", format="parquet").to_table().to_pylist()
    return sorted((row["arm"], row["prompt_id"], row["status"]) for row in found)


EVERY_ROW = sorted(("baseline", f"c{i}", "ok") for i in range(10))


def requested():
    """What Ray's autoscaler finds that it is asked for."""
    return json.loads(_internal_kv_get(b"autoscaler_resource_request") or b"[]")


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


@pytest.mark.slow
def test_two_nodes_draw_and_one_that_is_killed_costs_nothing_but_time(settings, cluster):
    first, second = (cluster.add_node(num_cpus=1) for _ in range(2))
    run = begun(settings, prompts={**settings["prompts"], "shard_size": 1})
    model = run.config.models[0]
    both, drawn = set(), []
    with RayExecutor(run.config, run.folder, model, slow_runner(2)) as executor:
        for receipt in drawn_by(executor, run):
            drawn.append(receipt)
            if len(executor.nodes()) == 2 and not both:
                both = set(executor.nodes())
                os.kill(raylet_of(second), signal.SIGKILL)
    assert both == {first.node_id, second.node_id}
    assert sorted(drawn) == [("baseline", shard) for shard in range(10)]
    assert rows(settings) == EVERY_ROW


@pytest.mark.slow
def test_cluster_without_room_says_so_and_draws_when_a_node_joins(settings, cluster, capsys):
    run = begun(settings)
    joined = False
    with RayExecutor(run.config, run.folder, open_runner=slow_runner(0)) as executor:
        pool = rendering.render_pool(run, runs.pending(run))
        drawn = []
        for found in executor.run(pool):
            if isinstance(found, ShardResult):
                drawn.append((found.arm, found.shard))
            elif not joined and requested() == [{"CPU": 1}] * 3:  # one for each shard
                assert not executor.pids()
                cluster.add_node(num_cpus=1)
                joined = True
    assert sorted(drawn) == [("baseline", shard) for shard in range(3)]
    assert rows(settings) == EVERY_ROW
    line = "waiting for resources: a worker needs 0 GPU and 1 CPU, the cluster has 0 GPU and 0 CPU"
    assert line in capsys.readouterr().out.splitlines()
    assert requested() == [], "taken back at the end"


@pytest.fixture
def watched_ray(monkeypatch):
    """Starts a local Ray that ends workers once so much of this machine's memory is in use."""

    def at(share):
        monkeypatch.setenv("RAY_ADDRESS", "local")
        monkeypatch.setenv("RAY_memory_usage_threshold", f"{share:.3f}")
        monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
        start()

    yield at
    stop()


@pytest.mark.slow
def test_workers_ended_for_memory_at_their_start_end_the_run_in_one_line(settings, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**settings, "workers": {"max": 1}}))
    full = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "tgate_batch", "render", "--config", str(file)],
        env={**os.environ, "RAY_ADDRESS": "local", **full},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done.stderr
    *warnings, line = done.stderr.splitlines()
    assert line.startswith(
        "error: workers: 3 in a row did not start: its machine ran out of memory"
    )
    ended = [line for line in warnings if " was killed: its machine ran out of memory" in line]
    assert len(ended) == 3
    last = json.loads((tmp_path / "out" / "history.jsonl").read_text().splitlines()[-1])
    assert (last["exit_code"], last["memory_kills"]) == (4, 3)


@pytest.mark.slow
def test_a_worker_ended_for_memory_in_the_middle_costs_nothing_but_time(
    settings, watched_ray, tmp_path
):
    memory = psutil.virtual_memory()
    watched_ray((memory.total - memory.available + 3 * 2**30) / memory.total)
    marker = tmp_path / "was full"

    def open_runner(model, config):
        class Hungry(StandIn):
            def denoise(self, conditions, seeds):
                if not marker.exists() and list(tmp_path.glob("out/images/*/*/*.parquet")):
                    marker.touch()
                    self.held = bytearray(b"x") * (6 * 2**30)
                    time.sleep(60)
                return super().denoise(conditions, seeds)

        return Hungry(model, config)

    run = begun(settings, workers={"max": 1})
    killed = []
    with RayExecutor(
        run.config, run.folder, None, open_runner, on_memory_kill=lambda: killed.append(1)
    ) as executor:
        drawn = list(drawn_by(executor, run))
    assert marker.exists()
    assert killed
    assert sorted(drawn) == [("baseline", shard) for shard in range(3)]
    assert rows(settings) == EVERY_ROW


@pytest.mark.slow
@pytest.mark.parametrize("server", ["gcs_server", "raylet"])
def test_a_server_of_ray_that_is_killed_while_it_starts_is_one_line_and_exit_code_4(server):
    code = (
        "from tgate_batch.cli.job import run_as_job\n"
        "from tgate_batch.execute.cluster import start\n"
        "run_as_job(start)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    children = psutil.Process(driver.pid).children
    while driver.poll() is None:
        if found := [child for child in children() if child.name() == server]:
            found[0].kill()
            break
        time.sleep(0.02)
    _, errors = driver.communicate(timeout=180)
    lines = [line for line in errors.splitlines() if not line.startswith("[")]  # Ray's C++
    assert lines == [
        f"error: Ray did not start on this machine: its {server} ended while it started; run the "
        "same command again to continue"
    ]
    assert driver.returncode == 4
