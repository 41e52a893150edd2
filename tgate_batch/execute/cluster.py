"""The Ray cluster as a whole: joined or started here, its room, what it is asked for, its loss."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from queue import SimpleQueue
from typing import Any

import psutil
import ray
from ray.autoscaler.sdk import request_resources

from tgate_batch import say
from tgate_batch.config import Workers
from tgate_batch.errors import ClusterLost, UserError
from tgate_batch.execute import guardian
from tgate_batch.output import goodbye

_PROBE_SECONDS = 1.0  # between looks whether the cluster is there
_PATIENCE_SECONDS = 6.0  # for a cluster that does not answer
_ANSWER_SECONDS = 2.0  # for one answer
_ENDING_SECONDS = 3.0  # for a thread or a process to end by itself
_ROOM_SECONDS = 2.0  # between questions about the cluster's size
_AHEAD = 1000  # workers that the autoscaler is asked for at one time, beyond the room there is
_HANDLER_SECONDS = 0.02  # for which a handler may be another's
_OPTIONS: Any = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}

_THREAD = "ray"
_calls: SimpleQueue[tuple[Callable[[], Any], Future]] = SimpleQueue()
_started: set[psutil.Process] = set()  # the local Ray of this process
_guardian: Any = None


def start() -> bool:
    """Joins the cluster that is there (``RAY_ADDRESS``, a job), else starts a local one.

    Returns False where that was done before.
    """
    global _guardian
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What a worker said that was set aside meanwhile is for nobody; Ray would print a trace.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    joins = os.environ.get("RAY_ADDRESS", "local") != "local"
    if not joins:
        # Ray would keep a local cluster's token in the home folder, and every `ray start` after
        # that would ask for it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _guardian = guardian.watching()
    before = set(psutil.Process().children())
    try:
        _aside(partial(ray.init, **_OPTIONS))
    except BaseException:
        guardian.end(guardian.family(set(psutil.Process().children()) - before), 0)
        raise
    _started.clear()
    if not joins:
        _started.update(set(psutil.Process().children()) - before)
        guardian.watch_only(_guardian, [process.pid for process in _started])
    return True


def stop(at_once: bool = False) -> None:
    """Leaves the cluster; a Ray that this process started is gone then, with all its processes.

    ``at_once``: Ray is not asked, and this process cannot use it again. Ray's own way takes
    seconds, a signal in the middle would break it, and a lost cluster does not answer.
    """
    global _guardian
    left = guardian.family(_started)
    if at_once:
        guardian.end(left, 0)
        return
    try:
        _aside(ray.shutdown)
    except BaseException:
        guardian.end(left, 0)
        raise
    guardian.end(left, _ENDING_SECONDS)
    if _guardian is not None:
        _guardian.communicate()
    _guardian = None
    _started.clear()


def is_local() -> bool:
    """Whether the cluster is the Ray that this process started: it never grows."""
    return bool(_started)


def _aside(call: Callable[[], Any]) -> None:
    """Calls in a thread, where Ray sets no handlers of Python's in place of ours.

    Those that it sets beneath Python end the process: ours are put back as often as it takes. A
    signal meanwhile raises here, and the call is left to itself.
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    ours = signal.getsignal(signal.SIGTERM)
    done: Future[None] = Future()
    _calls.put((call, done))
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_calling, name=_THREAD, daemon=True).start()
    while not done.done():
        wait([done], _HANDLER_SECONDS)
        signal.signal(signal.SIGTERM, ours)
    done.result()


def _calling() -> None:
    """Never ends: Ray's processes end with the thread that started them."""
    while True:
        call, done = _calls.get()
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)


class Cluster:
    """The cluster as one driver sees it. Its questions are asked in threads of their own: an
    answer may take a minute, or never come.
    """

    def __init__(self, workers: Workers):
        """Raises UserError where no worker could ever start."""
        node: Any = ray._private.worker.global_worker.node
        self.address: str = node.gcs_address
        self._raylet = _raylet(node.raylet_socket_name)
        self._each = {"CPU": workers.cpus_each, "GPU": workers.gpus_each}
        self._nodes: list[dict[str, float]] = []
        self._said = ""
        self._wanted = self._requested = 0
        self._lost, self._told, self._closed = (threading.Event() for _ in range(3))
        self._look()
        if is_local() and self.room == 0:
            offers = self._nodes[0] if self._nodes else {}
            raise UserError(
                f"workers: each asks {workers.cpus_each} CPU and {workers.gpus_each:g} GPU, and "
                f"this machine offers {offers.get('CPU', 0):g} and {offers.get('GPU', 0):g}; lower "
                "workers.cpus_each or workers.gpus_each (0 renders on the CPU)"
            )
        self._asking = threading.Thread(target=self._ask, name="room", daemon=True)
        self._asking.start()
        threading.Thread(target=self._probe, name="probe", daemon=True).start()

    @property
    def room(self) -> int:
        """How many workers fit the nodes that are there now."""
        return sum(
            int(min(node.get(kind, 0) / each for kind, each in self._each.items() if each))
            for node in self._nodes
        )

    def want(self, workers: int) -> None:
        """How many workers the autoscaler is to make room for. Without one, nothing comes of it."""
        self._wanted = workers

    def check(self) -> None:
        """Says what is waited for where no worker fits; raises ClusterLost."""
        if self._lost.is_set():
            self._told.set()
            raise self._loss()
        line = "" if self.room else self._waiting()
        if line and line != self._said:
            say.info(line, event="phase")
        self._said = line

    def lost_by(self, error: BaseException | None) -> ClusterLost | None:
        """The loss that an error comes of, if the cluster does not answer any more."""
        if isinstance(error, ClusterLost):
            return error
        if isinstance(error, Exception) and not self._answers():
            self._told.set()
            return self._loss()
        return None

    def close(self) -> None:
        """Takes back what the autoscaler was asked for."""
        self._wanted = 0
        self._closed.set()
        self._asking.join(_ENDING_SECONDS)

    def _ask(self) -> None:
        while not self._closed.wait(_ROOM_SECONDS):
            self._look()
            self._request()
        self._request()

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # a cluster in trouble; whether it is lost, we probe
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def _request(self) -> None:
        """The request is for the cluster as a whole, what this driver holds already included."""
        workers = min(self._wanted, self.room + _AHEAD)
        if is_local() or workers == self._requested:
            return
        bundle = {kind: each for kind, each in self._each.items() if each}
        with contextlib.suppress(Exception):
            request_resources(bundles=[bundle] * workers)
            self._requested = workers

    def _waiting(self) -> str:
        asks, offers = (
            f"{of.get('GPU', 0):g} GPU and {of.get('CPU', 0):g} CPU"
            for of in (self._each, _added_up(self._nodes))
        )
        return f"waiting for room: a worker asks {asks}, the cluster offers {offers}"

    def _probe(self) -> None:
        """Finds that the cluster is gone, before Ray's own threads end this process for it."""
        silent_since = None
        while not self._closed.wait(_PROBE_SECONDS):
            if self._answers():
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since >= _PATIENCE_SECONDS:
                self._lost.set()
                break
        if self._lost.is_set() and not self._told.wait(_ENDING_SECONDS) and goodbye.is_job():
            goodbye.leave_now(f"error: {self._loss()}", goodbye.MISSING)

    def _answers(self) -> bool:
        if self._raylet is not None and not _is_alive(self._raylet):
            return False
        return _answers(self.address)

    def _loss(self) -> ClusterLost:
        return ClusterLost(
            f"the Ray cluster at {self.address} is lost: it does not answer any more; what is "
            "finished stays, the same command goes on"
        )


def _answers(address: str) -> bool:
    """Whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _raylet(its_socket: str) -> psutil.Process | None:
    """The process of Ray's that this driver hangs on, where it can be seen."""
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or ()
        if process.info["name"] == "raylet" and any(its_socket in word for word in words):
            return process
    return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _added_up(nodes: list[dict[str, float]]) -> dict[str, float]:
    return {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
