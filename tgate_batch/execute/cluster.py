"""The Ray cluster as a whole: joined or started here, its room, what it is asked for, its loss."""

import contextlib
import logging
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from math import inf
from queue import SimpleQueue
from typing import Any

import psutil
import ray
import ray.exceptions
from ray.autoscaler.sdk import request_resources

from tgate_batch import console
from tgate_batch.config import Workers
from tgate_batch.errors import ClusterLost, NoRoom, UserError, one_line
from tgate_batch.execute import orphan_reaper
from tgate_batch.output import shutdown

_PROBE_SECONDS = 1.0  # between looks whether the cluster is there
_PATIENCE_SECONDS = 6.0  # for a cluster that does not answer
_ANSWER_SECONDS = 2.0  # for one answer
_ENDING_SECONDS = 3.0  # for a thread or a process to end by itself
_ROOM_SECONDS = 2.0  # between questions about the cluster's size
_PLACING_SECONDS = 30.0  # in which a worker that fits is usually placed
_ROOM_PATIENCE_SECONDS = 900.0  # for a machine that is large enough for a worker
_JOINING_SECONDS = 90.0  # for a cluster that answers to let this driver in
_AHEAD = 1000  # workers that the autoscaler is asked for at one time, beyond the room there is
_HANDLER_SECONDS = 0.02  # for which a handler may be another's
_OPTIONS: Any = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}

# HTTP/2: how a client begins, and the kind of frame with which a server does.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = b"\x04"

_SERVERS = ("gcs_server", "raylet")
_THREAD = "ray"
_calls: SimpleQueue[tuple[Callable[[], Any], Future]] = SimpleQueue()
_started: set[psutil.Process] = set()  # the local Ray of this process
_guardian: Any = None


def start() -> bool:
    """Joins the cluster that is there, else starts a local one; False if that was done before.

    A cluster is there if ``RAY_ADDRESS`` or a job names it, or ``ray start`` runs on this machine.
    Raises UserError if it cannot be joined, and ClusterLost if a local Ray cannot be started.
    """
    global _guardian
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What a worker said that was set aside meanwhile is for nobody; Ray would print a trace.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = address_to_join()
    _started.clear()
    if address is not None:
        _join(address)
        return True
    # Ray would keep a local cluster's token in the home folder, and every `ray start` after that
    # would ask for it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    before = set(psutil.Process().children())
    try:
        _guardian = orphan_reaper.start_reaper()
        before |= {psutil.Process(_guardian.pid)}
        _aside(partial(ray.init, address="local", **_OPTIONS), look=partial(_check_servers, before))
        _started.update(set(psutil.Process().children()) - before)
        orphan_reaper.watch_only(_guardian, [process.pid for process in _started])
    except BaseException as error:
        orphan_reaper.end_processes(
            orphan_reaper.process_family(set(psutil.Process().children()) - before), 0
        )
        if not isinstance(error, Exception):
            raise
        raise ClusterLost(
            f"Ray did not start on this machine: {first_sentence(error)}; run the same command "
            "again to continue"
        ) from None
    return True


def address_to_join() -> str | None:
    """The address of the cluster to join; None if this process is to start a local one.

    Raises UserError for an address at which no Ray answers.
    """
    asked = os.environ.get("RAY_ADDRESS") or None
    if asked == "local":
        return None
    if asked not in (None, "auto"):
        _check_address(asked)
        return asked
    here = ray._private.services.find_bootstrap_address(None)
    if here is None or not _is_ray(here):
        if asked == "auto":
            raise UserError(
                "RAY_ADDRESS is auto, and no Ray runs on this machine. Fix: unset RAY_ADDRESS to "
                "start a local one, or set it to HOST:6379"
            )
        return None
    if asked is None:
        console.info(
            f"joining the Ray that runs on this machine ({here}); RAY_ADDRESS=local starts a "
            "separate one",
            event="phase",
        )
    return here


def _check_address(address: str) -> None:
    """Raises UserError unless a Ray answers at the address."""
    host = address.partition("://")[2].partition(":")[0] or "HOST"
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS {one_line(address)} is not an address that a run can join: http:// is "
            "for ray job submit, ray:// for Ray's client. Fix: submit the command with ray job "
            f"submit, or set RAY_ADDRESS to {one_line(host)}:6379 on a machine of the cluster"
        )
    if ":" not in address or not address.rpartition(":")[2].isdigit():
        raise UserError(
            f"RAY_ADDRESS {one_line(address)} is not HOST:PORT. Fix: give the port of the head "
            "too (6379 unless ray start --port says otherwise)"
        )
    if not _is_ray(address):
        raise UserError(
            f"RAY_ADDRESS {one_line(address)}: no Ray answers there. Fix: start the head (ray "
            "start --head), correct the address, or unset RAY_ADDRESS to start a local Ray"
        )


def _join(address: str) -> None:
    """Raises UserError where the cluster does not let this driver in."""
    try:
        _aside(partial(ray.init, **_OPTIONS), seconds=_JOINING_SECONDS)
    except TimeoutError:
        reason = f"it did not answer in {_JOINING_SECONDS:.0f} s"
    except Exception as error:
        reason = first_sentence(error.__cause__ or error)
    else:
        return
    line = (
        f"the Ray cluster at {one_line(address)} cannot be joined: {reason}. Fix: run on a machine "
        "of the cluster, with its versions of Ray and Python and its token, or set "
        "RAY_ADDRESS=local to start a separate Ray"
    )
    raise UserError(line) from None


def first_sentence(error: object) -> str:
    """What an error says first, in one line. Ray's errors go on with pages of help."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    found = re.match(r".*?\.(?=\s|$)", lines[0])
    return one_line(found[0].rstrip(".") if found else lines[0])


def stop(at_once: bool = False) -> None:
    """Leaves the cluster; a Ray that this process started is gone then, with all its processes.

    ``at_once``: Ray is not asked, and this process cannot use it again. Ray's own way takes
    seconds, a signal in the middle would break it, and a lost cluster does not answer.
    """
    global _guardian
    left = orphan_reaper.process_family(_started)
    if at_once:
        orphan_reaper.end_processes(left, 0)
        return
    try:
        _aside(ray.shutdown)
    except BaseException:
        orphan_reaper.end_processes(left, 0)
        raise
    orphan_reaper.end_processes(left, _ENDING_SECONDS)
    if _guardian is not None:
        _guardian.communicate()
    _guardian = None
    _started.clear()


def is_local() -> bool:
    """Whether the cluster is the Ray that this process started: it never grows."""
    return bool(_started)


def _check_servers(before: set[psutil.Process]) -> None:
    """Raises ChildProcessError if a server of the Ray that is starting has ended.

    Ray itself would go on waiting for it, or end this process.
    """
    for process in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.Error):
            if process.name() in _SERVERS and not _is_alive(process):
                raise ChildProcessError(f"its {process.name()} ended while it started")


def _aside(
    call: Callable[[], Any], seconds: float = inf, look: Callable[[], None] = lambda: None
) -> None:
    """Calls in a thread, where Ray sets no handlers of Python's in place of ours.

    Those that it sets beneath Python end the process: ours are put back as often as it takes. A
    signal meanwhile raises here, and the call is left to itself. Raises TimeoutError after
    ``seconds``, and what ``look`` raises, which is called now and then.
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    ours = signal.getsignal(signal.SIGTERM)
    done: Future[None] = Future()
    _calls.put((call, done))
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_calling, name=_THREAD, daemon=True).start()
    until, next_look = time.monotonic() + seconds, 0.0
    while not done.done():
        if time.monotonic() > until:
            raise TimeoutError
        if time.monotonic() > next_look:
            look()
            next_look = time.monotonic() + _PROBE_SECONDS
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
        self._nodes: dict[str, dict[str, float]] = {}  # by Ray's id
        self._free: dict[str, float] | None = None  # of all nodes
        self._most: dict[str, int] = {}  # workers that a node has memory for, where that is known
        self._patience = workers.room_within
        self._said = ""
        self._unplaced_since: float | None = None
        self._wanted = self._requested = 0
        self._lost, self._told, self._closed = (threading.Event() for _ in range(3))
        self._look()
        if is_local() and self.room == 0:
            offers = _added_up(self._nodes.values())
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
        fit = {node: _fit(offers, self._each) for node, offers in self._nodes.items()}
        return sum(min(workers, self._most.get(node, workers)) for node, workers in fit.items())

    def limit(self, node: str, workers: int) -> None:
        """A node's memory is enough for so many workers at most."""
        self._most[node] = min(workers, self._most.get(node, workers))

    def full(self, nodes: Iterable[str]) -> list[str]:
        """The nodes that have no memory for another worker; ``nodes`` has one entry a worker."""
        held = Counter(nodes)
        return sorted(node for node, most in self._most.items() if held[node] >= most)

    def want(self, workers: int) -> None:
        """How many workers the autoscaler is to make room for. Without one, nothing comes of it."""
        self._wanted = workers

    def check(self, is_placed: bool) -> None:
        """Logs what the cluster lacks while no worker has a place.

        Raises ClusterLost, and NoRoom after ``workers.room_within``.
        """
        if self._lost.is_set():
            self._told.set()
            raise self._loss()
        now = time.monotonic()
        if is_placed:
            self._unplaced_since = None
        elif self._unplaced_since is None:
            self._unplaced_since = now
        waited = 0 if self._unplaced_since is None else now - self._unplaced_since
        line = "" if is_placed else self._waiting(waited)
        if line and line != self._said:
            console.info(line, event="phase")
        self._said = line
        default = inf if self.room else _ROOM_PATIENCE_SECONDS
        if line and waited > (self._patience or default):
            raise NoRoom(
                f"{line}; nothing changed in {waited:.0f} s. Fix: add a machine, lower "
                "workers.gpus_each or workers.cpus_each, or raise workers.room_within"
            )

    @property
    def is_waited_for(self) -> bool:
        """Whether the run waits for room, as ``check`` has logged."""
        return bool(self._said)

    def lost_by(self, error: BaseException | None) -> ClusterLost | None:
        """The loss that an error comes of: the cluster does not answer, or Ray itself fails."""
        if isinstance(error, ClusterLost):
            return error
        if isinstance(error, Exception) and not self.answers():
            self._told.set()
            return self._loss()
        if isinstance(error, ray.exceptions.RayError):
            return ClusterLost(
                f"the Ray cluster at {self.address} failed ({type(error).__name__}: "
                f"{first_sentence(error)}); finished images are kept, run the same command again "
                "to continue"
            )
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
            self._nodes = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
            self._free = ray.available_resources()

    def _request(self) -> None:
        """The request is for the cluster as a whole, what this driver holds already included."""
        workers = min(self._wanted, self.room + _AHEAD)
        if is_local() or workers == self._requested:
            return
        bundle = {kind: each for kind, each in self._each.items() if each}
        with contextlib.suppress(Exception):
            request_resources(bundles=[bundle] * workers)
            self._requested = workers

    def _waiting(self, seconds: float) -> str:
        """What the cluster lacks; empty where it has room, or a worker may yet be on its way."""
        asks = _words(self._each)
        if self.room == 0:
            offers = _words(_added_up(self._nodes.values()))
            return f"waiting for room: a worker asks {asks}, the cluster offers {offers}"
        if seconds < _PLACING_SECONDS or self._free is None or _fit(self._free, self._each):
            return ""
        return f"waiting for room: a worker asks {asks}, others use all but {_words(self._free)}"

    def _probe(self) -> None:
        """Finds that the cluster is gone, before Ray's own threads end this process for it."""
        silent_since = None
        while not self._closed.wait(_PROBE_SECONDS):
            if self.answers():
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since >= _PATIENCE_SECONDS:
                self._lost.set()
                break
        if self._lost.is_set() and not self._told.wait(_ENDING_SECONDS) and shutdown.is_job():
            shutdown.exit_now(f"error: {self._loss()}", shutdown.MISSING)

    def answers(self) -> bool:
        """Whether the head listens, and the process of Ray's that this driver hangs on is alive."""
        if self._raylet is not None and not _is_alive(self._raylet):
            return False
        return _answers(self.address)

    def _loss(self) -> ClusterLost:
        return ClusterLost(
            f"the Ray cluster at {self.address} is lost: it does not answer any more; what is "
            "finished stays, the same command goes on"
        )


def _is_ray(address: str) -> bool:
    """Whether a server at ``host:port`` speaks the protocol of Ray's (gRPC, over HTTP/2)."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return _answers(address)
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS) as server:
            server.settimeout(_PATIENCE_SECONDS)
            server.sendall(_PREFACE)
            return server.recv(4)[3:] == _SETTINGS
    except (OSError, ValueError, OverflowError):
        return False


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


def _words(of: Mapping[str, float]) -> str:
    return f"{of.get('GPU', 0):g} GPU and {of.get('CPU', 0):g} CPU"


def _fit(offers: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers of so much ``each`` the resources are enough for."""
    return int(min(offers.get(kind, 0) / asks for kind, asks in each.items() if asks))


def _added_up(nodes: Collection[Mapping[str, float]]) -> dict[str, float]:
    return {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
