"""The Ray cluster: join or start it, watch its resources, ask for more, and detect its loss."""

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

_PROBE_SECONDS = 1.0  # between probes of the cluster
_PATIENCE_SECONDS = 6.0  # after which a cluster that does not answer is lost
_ANSWER_SECONDS = 2.0  # for one answer
_ENDING_SECONDS = 3.0  # for a thread or a process to end by itself
_ROOM_SECONDS = 2.0  # between queries of the cluster's resources
_PLACING_SECONDS = 30.0  # in which a worker that fits is usually placed
_ROOM_PATIENCE_SECONDS = 900.0  # to wait for a machine that is large enough for a worker
_JOINING_SECONDS = 90.0  # for joining a cluster that answers
_AHEAD = 1000  # workers beyond the present room that the autoscaler is asked for at a time
_HANDLER_SECONDS = 0.02  # for which Ray's signal handler may replace ours
_OPTIONS: Any = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}

# HTTP/2: the client's first bytes, and the type of the server's first frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = b"\x04"

_SERVERS = ("gcs_server", "raylet")
_THREAD = "ray"
_calls: SimpleQueue[tuple[Callable[[], Any], Future]] = SimpleQueue()
_started: set[psutil.Process] = set()  # the local Ray of this process
_reaper: Any = None


def start() -> bool:
    """Joins the existing cluster, or starts a local one; returns False if that was done before.

    A cluster exists if ``RAY_ADDRESS`` or a job names it, or ``ray start`` runs on this machine.
    Raises UserError if it cannot be joined, and ClusterLost if a local Ray cannot be started.
    """
    global _reaper
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ignore errors of workers that were killed; Ray would print a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = address_to_join()
    _started.clear()
    if address is not None:
        _join(address)
        return True
    # Otherwise Ray stores the token in the home folder, and every later `ray start` requires it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    before = set(psutil.Process().children())
    try:
        _reaper = orphan_reaper.start_reaper()
        before |= {psutil.Process(_reaper.pid)}
        _call_in_thread(
            partial(ray.init, address="local", **_OPTIONS), check=partial(_check_servers, before)
        )
        _started.update(set(psutil.Process().children()) - before)
        orphan_reaper.watch_only(_reaper, [process.pid for process in _started])
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
    """Returns the address of the cluster to join; None if a local one must be started.

    Raises UserError if no Ray answers at the address.
    """
    given = os.environ.get("RAY_ADDRESS") or None
    if given == "local":
        return None
    if given not in (None, "auto"):
        _check_address(given)
        return given
    here = ray._private.services.find_bootstrap_address(None)
    if here is None or not _is_ray(here):
        if given == "auto":
            raise UserError(
                "RAY_ADDRESS is auto, and no Ray runs on this machine. Fix: unset RAY_ADDRESS to "
                "start a local one, or set it to HOST:6379"
            )
        return None
    if given is None:
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
            f"RAY_ADDRESS {one_line(address)} is not HOST:PORT. Fix: add the port of the head "
            "(6379 unless ray start had --port)"
        )
    if not _is_ray(address):
        raise UserError(
            f"RAY_ADDRESS {one_line(address)}: no Ray answers there. Fix: start the head (ray "
            "start --head), correct the address, or unset RAY_ADDRESS to start a local Ray"
        )


def _join(address: str) -> None:
    """Joins a cluster; raises UserError if that fails."""
    try:
        _call_in_thread(partial(ray.init, **_OPTIONS), seconds=_JOINING_SECONDS)
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
    """Returns an error's first sentence, in one line; Ray's errors have pages of help after it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    match = re.match(r".*?\.(?=\s|$)", lines[0])
    return one_line(match[0].rstrip(".") if match else lines[0])


def stop(at_once: bool = False) -> None:
    """Leaves the cluster; a Ray that this process started ends with all its processes.

    ``at_once``: kill them without Ray's shutdown, after which this process cannot use Ray again.
    Ray's shutdown takes seconds, must not be interrupted by a signal, and needs a live cluster.
    """
    global _reaper
    left = orphan_reaper.process_family(_started)
    if at_once:
        orphan_reaper.end_processes(left, 0)
        return
    try:
        _call_in_thread(ray.shutdown)
    except BaseException:
        orphan_reaper.end_processes(left, 0)
        raise
    orphan_reaper.end_processes(left, _ENDING_SECONDS)
    if _reaper is not None:
        _reaper.communicate()
    _reaper = None
    _started.clear()


def is_local() -> bool:
    """True if this process started the cluster, which then never grows."""
    return bool(_started)


def _check_servers(before: set[psutil.Process]) -> None:
    """Raises ChildProcessError if a server of the starting Ray has ended.

    Ray itself would wait for it forever, or end this process.
    """
    for process in set(psutil.Process().children()) - before:
        with contextlib.suppress(psutil.Error):
            if process.name() in _SERVERS and not _is_alive(process):
                raise ChildProcessError(f"its {process.name()} ended while it started")


def _call_in_thread(
    call: Callable[[], Any], seconds: float = inf, check: Callable[[], None] = lambda: None
) -> None:
    """Calls Ray in a thread, where it cannot replace Python's signal handlers.

    The handlers that it sets in C would end the process, so ours is restored until the call ends.
    A signal meanwhile raises here, and the call continues alone. Raises TimeoutError after
    ``seconds``, and what ``check`` raises, which is called regularly.
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    ours = signal.getsignal(signal.SIGTERM)
    done: Future[None] = Future()
    _calls.put((call, done))
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        threading.Thread(target=_run_calls, name=_THREAD, daemon=True).start()
    until, next_check = time.monotonic() + seconds, 0.0
    while not done.done():
        if time.monotonic() > until:
            raise TimeoutError
        if time.monotonic() > next_check:
            check()
            next_check = time.monotonic() + _PROBE_SECONDS
        wait([done], _HANDLER_SECONDS)
        signal.signal(signal.SIGTERM, ours)
    done.result()


def _run_calls() -> None:
    """Never ends, because Ray's processes end with the thread that started them."""
    while True:
        call, done = _calls.get()
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)


class Cluster:
    """One driver's view of the cluster.

    Threads query it, because an answer may take a minute, or never come.
    """

    def __init__(self, workers: Workers):
        """Raises UserError if no worker could ever start."""
        node: Any = ray._private.worker.global_worker.node
        self.address: str = node.gcs_address
        self._raylet = _raylet(node.raylet_socket_name)
        self._each = {"CPU": workers.cpus_each, "GPU": workers.gpus_each}
        self._nodes: dict[str, dict[str, float]] = {}  # by Ray's id
        self._free: dict[str, float] | None = None  # of all nodes
        self._limits: dict[str, int] = {}  # workers that a node has memory for, if that is known
        self._patience = workers.room_within
        self._logged = ""
        self._unplaced_since: float | None = None
        self._wanted = self._requested = 0
        self._lost, self._reported, self._closed = (threading.Event() for _ in range(3))
        self._query()
        if is_local() and self.room == 0:
            offers = _sum(self._nodes.values())
            raise UserError(
                f"workers: each needs {workers.cpus_each} CPU and {workers.gpus_each:g} GPU, and "
                f"this machine has {offers.get('CPU', 0):g} and {offers.get('GPU', 0):g}. Fix: "
                "lower workers.cpus_each or workers.gpus_each (0 renders on the CPU)"
            )
        self._requester = threading.Thread(target=self._query_and_request, name="room", daemon=True)
        self._requester.start()
        threading.Thread(target=self._probe, name="probe", daemon=True).start()

    @property
    def room(self) -> int:
        """How many workers fit on the present nodes."""
        fit = {node: _fit(offers, self._each) for node, offers in self._nodes.items()}
        return sum(min(workers, self._limits.get(node, workers)) for node, workers in fit.items())

    def limit(self, node: str, workers: int) -> None:
        """Limits the workers of a node, because of its memory."""
        self._limits[node] = min(workers, self._limits.get(node, workers))

    def full(self, nodes: Iterable[str]) -> list[str]:
        """Returns the nodes without memory for another worker; ``nodes``: one for each worker."""
        workers = Counter(nodes)
        return sorted(node for node, limit in self._limits.items() if workers[node] >= limit)

    def want(self, workers: int) -> None:
        """Requests resources for this many workers; has no effect without an autoscaler."""
        self._wanted = workers

    def check(self, is_placed: bool) -> None:
        """Logs what the cluster lacks while no worker is placed.

        Raises ClusterLost, and NoRoom after ``workers.room_within``.
        """
        if self._lost.is_set():
            self._reported.set()
            raise self._loss()
        now = time.monotonic()
        if is_placed:
            self._unplaced_since = None
        elif self._unplaced_since is None:
            self._unplaced_since = now
        waited = 0 if self._unplaced_since is None else now - self._unplaced_since
        line = "" if is_placed else self._shortage(waited)
        if line and line != self._logged:
            console.info(line, event="phase")
        self._logged = line
        default = inf if self.room else _ROOM_PATIENCE_SECONDS
        if line and waited > (self._patience or default):
            raise NoRoom(
                f"{line}; nothing changed in {waited:.0f} s. Fix: add a machine, lower "
                "workers.gpus_each or workers.cpus_each, or raise workers.room_within"
            )

    @property
    def is_waited_for(self) -> bool:
        """True if the run waits for resources, as ``check`` has logged."""
        return bool(self._logged)

    def lost_by(self, error: BaseException | None) -> ClusterLost | None:
        """Returns the loss that caused an error; None if the cluster answers and Ray works."""
        if isinstance(error, ClusterLost):
            return error
        if isinstance(error, Exception) and not self.answers():
            self._reported.set()
            return self._loss()
        if isinstance(error, ray.exceptions.RayError):
            return ClusterLost(
                f"the Ray cluster at {self.address} failed ({type(error).__name__}: "
                f"{first_sentence(error)}); finished images are kept. Fix: rerun the same "
                "command to continue"
            )
        return None

    def close(self) -> None:
        """Withdraws the requests to the autoscaler."""
        self._wanted = 0
        self._closed.set()
        self._requester.join(_ENDING_SECONDS)

    def _query_and_request(self) -> None:
        while not self._closed.wait(_ROOM_SECONDS):
            self._query()
            self._request()
        self._request()

    def _query(self) -> None:
        with contextlib.suppress(Exception):  # _probe decides whether the cluster is lost
            self._nodes = {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
            self._free = ray.available_resources()

    def _request(self) -> None:
        """Asks the autoscaler; the request covers the whole cluster, with this driver's workers."""
        workers = min(self._wanted, self.room + _AHEAD)
        if is_local() or workers == self._requested:
            return
        bundle = {kind: each for kind, each in self._each.items() if each}
        with contextlib.suppress(Exception):
            request_resources(bundles=[bundle] * workers)
            self._requested = workers

    def _shortage(self, seconds: float) -> str:
        """Returns what the cluster lacks; empty if it has room, or a worker may still be placed."""
        needs = _describe(self._each)
        if self.room == 0:
            offers = _describe(_sum(self._nodes.values()))
            return f"waiting for resources: a worker needs {needs}, the cluster has {offers}"
        if seconds < _PLACING_SECONDS or self._free is None or _fit(self._free, self._each):
            return ""
        free = _describe(self._free)
        return f"waiting for resources: a worker needs {needs}, of the cluster {free} are free"

    def _probe(self) -> None:
        """Detects a lost cluster before Ray's own threads end this process."""
        silent_since = None
        while not self._closed.wait(_PROBE_SECONDS):
            if self.answers():
                silent_since = None
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since >= _PATIENCE_SECONDS:
                self._lost.set()
                break
        if self._lost.is_set() and not self._reported.wait(_ENDING_SECONDS) and shutdown.is_job():
            shutdown.exit_now(f"error: {self._loss()}", shutdown.MISSING)

    def answers(self) -> bool:
        """True if the head listens and the raylet of this driver is alive."""
        if self._raylet is not None and not _is_alive(self._raylet):
            return False
        return _answers(self.address)

    def _loss(self) -> ClusterLost:
        return ClusterLost(
            f"the Ray cluster at {self.address} is lost: it does not answer; finished images are "
            "kept. Fix: rerun the same command to continue"
        )


def _is_ray(address: str) -> bool:
    """True if a server at ``host:port`` speaks Ray's protocol (gRPC over HTTP/2)."""
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
    """True if a server listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _raylet(socket_name: str) -> psutil.Process | None:
    """Returns the raylet process of this driver; None if it is not visible."""
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or ()
        if process.info["name"] == "raylet" and any(socket_name in word for word in words):
            return process
    return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _describe(resources: Mapping[str, float]) -> str:
    return f"{resources.get('GPU', 0):g} GPU and {resources.get('CPU', 0):g} CPU"


def _fit(offers: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Returns how many workers that need ``each`` fit into the resources."""
    return int(min(offers.get(kind, 0) / needed for kind, needed in each.items() if needed))


def _sum(nodes: Collection[Mapping[str, float]]) -> dict[str, float]:
    return {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
