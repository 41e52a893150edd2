"""Faults of real processes: workers, drivers and nodes are killed or told to go, at any moment."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import psutil
import yaml
from painter import Mischief
from world import World

from tgate_batch import workflow
from tgate_batch.config import Config
from tgate_batch.output import history, layout
from tgate_batch.storage import Folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 90.0  # seconds within which every driver is to end

Act = Callable[["Driver", random.Random], None]


class Cluster:
    """A Ray of our own, of one or more nodes on this machine; ended with all that it started."""

    def __init__(self, place: Path, nodes: int = 1, cpus: int = 2):
        self._place = place
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._known: list[psutil.Process] = []
        self.raylets: list[psutil.Process] = []
        for _ in range(nodes):
            self.add_node(cpus)

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

    def __init__(self, settings: Config, cluster: Cluster | None):
        self.settings = settings
        self.cluster = cluster
        file = Path(settings.output).with_suffix(".yaml")
        file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        self._log = open(file.with_suffix(".log"), "w+")  # noqa: SIM115  closed in `ended`
        where = {} if cluster is None else {"RAY_ADDRESS": cluster.address}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), str(file)],
            env=surroundings(**where),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait_for_files(self, count: int = 1) -> None:
        """Until so many picture files are there."""
        until = time.monotonic() + PATIENCE
        while len(list(Path(self.settings.output).glob(layout.IMAGE_FILES))) < count:
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"it drew nothing: {self.said()[-1500:]}")
            time.sleep(0.05)

    def ended(self) -> int:
        """Its exit code; a driver that hangs fails the round."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"it hangs: {self.said()[-1500:]}") from None

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()


def disturbed(
    world: World,
    rng: random.Random,
    cluster: Cluster | None,
    act: Act,
    codes: Collection[int],
    **changes: object,
) -> Driver:
    """A run that something happens to at a random moment; it is run again until it is done.

    The first run has to end with one of ``codes``, and without a traceback.
    """
    Mischief(seconds=0.1).tell()
    settings = world.config(workers={"executor": "ray", "max": 2}, **changes)
    driver = Driver(settings, cluster)
    driver.wait_for_files()
    time.sleep(rng.uniform(0, 1.5))
    act(driver, rng)
    code = driver.ended()
    assert code in codes, f"exit code {code}: {driver.said()[-1500:]}"
    assert "Traceback" not in driver.said(), driver.said()[-1500:]
    Mischief().tell()
    if code != workflow.DONE:
        again = Driver(settings, cluster)
        assert again.ended() == workflow.DONE, again.said()[-1500:]
    world.check(settings)
    return driver


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
    second = Driver(driver.settings, driver.cluster)
    assert second.ended() == workflow.UNUSABLE, second.said()[-1500:]
    assert "is in use" in second.said()


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


def exit_code_is_kept(driver: Driver, code: int) -> None:
    last = history.read(Folder(driver.settings.output))[0]
    assert last["exit_code"] == code, last


ON_A_SHARED_CLUSTER: dict[str, tuple[Act, tuple[int, ...], int]] = {
    "kill -9 of a worker": (kill_a_worker, (0,), 6),
    "SIGTERM to a worker": (end_a_worker, (0,), 4),
    "kill -9 of all workers": (kill_all_workers, (0,), 4),
    "kill -9 of the driver": (signal_the_driver(signal.SIGKILL), (-9,), 5),
    "SIGTERM to the driver": (signal_the_driver(signal.SIGTERM), (143, 0), 5),
    "SIGINT to the driver": (signal_the_driver(signal.SIGINT), (130, 0), 4),
    "two signals to the driver": (signal_the_driver_twice, (143, 130, 0), 2),
    "a second driver": (second_driver, (0,), 2),
    "pictures removed meanwhile": (remove_the_pictures, (4, 0), 3),
}
ON_ITS_OWN_CLUSTER: dict[str, tuple[Act, tuple[int, ...], int, int]] = {  # and nodes, times
    "kill -9 of one of two nodes": (kill_a_node, (0,), 2, 3),
    "kill -9 of Ray's head": (kill_the_head, (4,), 1, 3),
}
