"""Faults of real processes: workers, drivers and nodes are killed or told to go, at any moment."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from painter import Mischief
from world import ARMS, World

from tgate_batch import workflow
from tgate_batch.config import Config
from tgate_batch.output import layout, shutdown
from tgate_batch.storage import Folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 180.0  # seconds within which every driver is to end

ON_RAY = {"executor": "ray", "max": 2}

MARK = "TGATE_BATCH_DRIVER"  # the environment's name for a driver's mark on all that it starts
LEFT_SECONDS = 20.0  # for which something of a driver that ended may be there

Act = Callable[["Driver", random.Random], None]
When = Callable[["Driver"], None]


class Cluster:
    """A Ray of our own, of one or more nodes on this machine; ended with all that it started."""

    def __init__(self, place: Path, nodes: int = 1):
        self._place = place
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._known: list[psutil.Process] = []
        self.raylets: list[psutil.Process] = []
        for _ in range(nodes):
            self.add_node(2 // nodes)

    def add_node(self, cpus: int) -> None:
        """Starts a node; the first is the head."""
        before = {process.pid for process in psutil.process_iter()}
        head = ["--head", "--port", str(self._port), "--include-dashboard=false"]
        head += ["--temp-dir", str(self._place / "ray")]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--disable-usage-stats"]
        command += ["--address", self.address] if self.raylets else head
        command += ["--num-cpus", str(cpus)]
        environment = surroundings()
        environment.pop("RAY_ADDRESS", None)
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        mark = str(self._port)
        fresh = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
        ours = [p for p in fresh if mark in " ".join(p.info["cmdline"] or ())]
        self._known += ours
        self.raylets += [p for p in ours if "raylet/raylet" in " ".join(p.info["cmdline"])[:400]]

    def workers(self) -> list[psutil.Process]:
        """The processes of actors, on all nodes."""
        found = []
        for raylet in self.raylets:
            try:
                children = raylet.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            found += [p for p in children if _title(p).startswith("ray::_RayWorker")]
        return found

    def end(self) -> None:
        processes = [*self._known]
        for process in self._known:
            with _gone():
                processes += process.children(recursive=True)
        for process in processes:
            with _gone():
                process.kill()
        psutil.wait_procs(processes, 10)


def _gone() -> suppress:
    return suppress(psutil.NoSuchProcess)


def _title(process: psutil.Process) -> str:
    with _gone():
        return " ".join(process.cmdline())
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def surroundings(**more: str) -> dict[str, str]:
    """The environment of drivers and workers."""
    paths = [str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_worker_niceness": "0",
        **more,
    }


class Driver:
    """A run as a process."""

    def __init__(
        self,
        world: World,
        settings: Config,
        cluster: Cluster | None = None,
        options: Collection[str] = (),
        **environment: str,
    ):
        self.world = world
        self.settings = settings
        self.cluster = cluster
        file = world.place / f"driver-{uuid.uuid4().hex}.yaml"
        file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        self._log = file.with_suffix(".log")
        self._mark = file.stem
        where = {MARK: self._mark} | ({"RAY_ADDRESS": cluster.address} if cluster else {})
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "driver.py"), str(file), *options],
                env=surroundings(**where, **environment),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, sign: Callable[[], Any]) -> None:
        """Until there is a sign of it."""
        until = time.monotonic() + PATIENCE
        while not sign():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"it did not come so far: {self.printed()}")
            time.sleep(0.02)

    def ended(self) -> int:
        """Its exit code; a driver that hangs, or ends with a traceback, fails the round."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self.printed()}") from None
        finally:
            self.process.kill()
        assert "Traceback" not in self.printed(), self.printed()
        assert "SIGTERM received" not in self.printed(), f"Ray's own words: {self.printed()}"
        return self.world.judged(self.settings, code)

    def children(self) -> list[str]:
        with _gone():
            return [_title(child) for child in psutil.Process(self.process.pid).children()]
        return []

    def check_nothing_left(self) -> None:
        """No process that it started, a Ray of its own included, outlives it for long."""
        until = time.monotonic() + LEFT_SECONDS
        while left := [p for p in psutil.process_iter(["environ"]) if self._is_of(p)]:
            assert time.monotonic() < until, f"{len(left)} left, as {_title(left[0])}"
            time.sleep(0.2)

    def _is_of(self, process: psutil.Process) -> bool:
        with _gone():
            environment = process.info["environ"] or {}
            return environment.get(MARK) == self._mark and process.status() != "zombie"
        return False

    def printed(self) -> str:
        """The end of what it said."""
        return self._log.read_text()[-1500:]


def first_files(driver: Driver) -> None:
    """Until it has drawn something."""
    driver.wait_for(lambda: Folder(driver.settings.output).names(layout.IMAGES))


def its_ray_starts(driver: Driver) -> None:
    driver.wait_for(lambda: any("gcs_server" in name for name in driver.children()))


def its_last_scores(driver: Driver) -> None:
    scores = layout.scores("demo", ARMS[-1])
    driver.wait_for(lambda: Folder(driver.settings.output).exists(scores))


def disturbed(
    world: World,
    rng: random.Random,
    cluster: Cluster | None,
    act: Act,
    codes: Collection[int],
    when: When = first_files,
    **changes: object,
) -> None:
    """A run that something happens to at a random moment; it is run again until it is done.

    The first run has to end with one of ``codes``, and without a traceback.
    """
    Mischief(seconds=0.1).request()
    settings = world.config(**{"workers": ON_RAY, **changes})
    driver = Driver(world, settings, cluster)
    try:
        when(driver)
        time.sleep(rng.uniform(0, 1.5))
        act(driver, rng)
        code = driver.ended()
        driver.check_nothing_left()
    finally:
        driver.process.kill()
    assert code in codes, f"exit code {code}: {driver.printed()}"
    if code != workflow.DONE:
        world.resume(settings)
    world.check(settings)


def suspended_and_taken_over(
    first_world: World, second_world: World, rng: random.Random, **changes: object
) -> None:
    """A driver is suspended for longer than a claim may stand still; another one takes over.

    The first one wakes while the other one works, or after it. It writes no more, and says so.
    """
    Mischief(seconds=0.1).request()
    settings = first_world.config(**changes)
    theirs = second_world.config(**{"output": settings.output, **changes})
    beat = {"TGATE_BATCH_BEAT": "0.2"}
    first = Driver(first_world, settings, **beat)
    drivers = [first]
    try:
        first_files(first)
        time.sleep(rng.uniform(0, 0.5))
        first.process.send_signal(signal.SIGSTOP)
        assert first.process.poll() is None, "it ended before it was suspended"
        second = Driver(second_world, theirs, None, ["--replace-stale"], **beat)
        drivers.append(second)
        second.wait_for(lambda: f'"pid": {second.process.pid},' in _claim(theirs))
        during = rng.random() < 0.5
        if during:
            time.sleep(rng.uniform(0, 1))
        else:
            assert second.ended() == workflow.DONE, second.printed()
        before = _files(theirs)
        first.process.send_signal(signal.SIGCONT)
        assert first.ended() == shutdown.MISSING, first.printed()
        if during:
            assert second.ended() == workflow.DONE, second.printed()
        else:
            assert _files(theirs) == before, "it wrote after it had lost its claim"
        errors = [line for line in first.printed().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, first.printed()
        assert "no longer belongs to this run" in errors[0]
    finally:
        for driver in drivers:
            driver.process.kill()
    second_world.check(theirs)


def _claim(settings: Config) -> str:
    return (Folder(settings.output).get(layout.CLAIM) or b"").decode()


def _files(settings: Config) -> dict[str, bytes]:
    folder = Folder(settings.output)
    return {name: folder.read(name) for name in folder.names("")}


def kill_a_worker(driver: Driver, rng: random.Random, how: int = signal.SIGKILL) -> None:
    assert driver.cluster is not None
    if workers := driver.cluster.workers():
        with _gone():
            rng.choice(workers).send_signal(how)


def end_a_worker(driver: Driver, rng: random.Random) -> None:
    kill_a_worker(driver, rng, signal.SIGTERM)


def kill_all_workers(driver: Driver, rng: random.Random) -> None:
    assert driver.cluster is not None
    for worker in driver.cluster.workers():
        with _gone():
            worker.kill()


def signal_the_driver(how: int) -> Act:
    def act(driver: Driver, rng: random.Random) -> None:
        driver.process.send_signal(how)

    return act


def signal_the_driver_twice(driver: Driver, rng: random.Random) -> None:
    for how in (signal.SIGTERM, signal.SIGINT):
        driver.process.send_signal(how)
        time.sleep(rng.uniform(0, 0.3))


def second_driver(driver: Driver, rng: random.Random) -> None:
    second = Driver(driver.world, driver.settings, driver.cluster)
    assert second.ended() == workflow.UNUSABLE, second.printed()
    assert "is in use" in second.printed()


def remove_the_pictures(driver: Driver, rng: random.Random) -> None:
    shutil.rmtree(Path(driver.settings.output) / layout.IMAGES, ignore_errors=True)


def kill_a_node(driver: Driver, rng: random.Random) -> None:
    assert driver.cluster is not None
    driver.cluster.raylets[-1].kill()


def kill_the_head(driver: Driver, rng: random.Random) -> None:
    assert driver.cluster is not None
    driver.cluster.raylets[0].kill()
    for process in driver.cluster._known:
        with _gone():
            if "gcs_server" in _title(process):
                process.kill()


ON_A_SHARED_CLUSTER: dict[str, tuple[Act, tuple[int, ...], int]] = {
    "kill -9 of a worker": (kill_a_worker, (0,), 2),
    "SIGTERM to a worker": (end_a_worker, (0,), 2),
    "kill -9 of all workers": (kill_all_workers, (0,), 2),
    "kill -9 of the driver": (signal_the_driver(signal.SIGKILL), (-9, 0), 4),
    "SIGTERM to the driver": (signal_the_driver(signal.SIGTERM), (143, 0), 4),
    "SIGINT to the driver": (signal_the_driver(signal.SIGINT), (130, 0), 3),
    "two signals to the driver": (signal_the_driver_twice, (143, 130, 0), 2),
    "a second driver": (second_driver, (0,), 1),
    "pictures removed meanwhile": (remove_the_pictures, (4, 0), 2),
}
ON_ITS_OWN_CLUSTER: dict[str, tuple[Act, tuple[int, ...], int, int]] = {  # and nodes, times
    "kill -9 of one of two nodes": (kill_a_node, (0,), 2, 2),
    "kill -9 of Ray's head": (kill_the_head, (4, 0), 1, 2),
}
WITH_A_RAY_THAT_IT_STARTS: dict[str, tuple[Act, tuple[int, ...], When, int]] = {
    "SIGTERM while Ray starts": (signal_the_driver(signal.SIGTERM), (143,), its_ray_starts, 2),
    "SIGTERM while Ray ends": (signal_the_driver(signal.SIGTERM), (143, 0), its_last_scores, 2),
    "kill -9 while Ray starts": (signal_the_driver(signal.SIGKILL), (-9,), its_ray_starts, 2),
}
