"""Where a worker's time goes: seconds by stage, and the energy its GPU took meanwhile."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ON_DEVICE = ("load", "text", "denoise", "decode")  # one at a time; the rest of the wall is idle
BESIDE = ("encode", "write")  # on threads, while the device goes on


class StageTimer:
    """Adds up seconds by stage, from any thread; ``wall`` runs from the beginning."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._start = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds

    def summary(self) -> dict[str, float]:
        """Seconds of every stage so far, and ``wall``."""
        with self._lock:
            known = {stage: self._seconds[stage] for stage in (*ON_DEVICE, *BESIDE)}
        return known | {"wall": time.perf_counter() - self._start}


class Energy:
    """The joules a GPU takes from here on, as NVML counts them."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self._start = self._total()

    def joules(self) -> float | None:
        """None where there is no GPU, or it does not count."""
        counted = self.counted()
        return None if counted is None else counted[1] - counted[0]

    def counted(self) -> tuple[float, float] | None:
        """The GPU's own count (joules) at the start and now; None as for ``joules``."""
        now = self._total()
        return None if now is None or self._start is None else (self._start, now)

    def _total(self) -> float | None:
        if self.gpu is None:
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(self.gpu)
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        except Exception:  # no driver, no right, or a GPU that does not count: nothing to report
            return None


def aggregate_workers(workers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Workers' summaries added up: ``seconds`` by stage with ``idle``, ``busy_share``, ``joules``.

    ``busy_share`` is text, denoising and decoding over the whole wall. What a GPU took is counted
    once, also where several workers share it, or use it one after the other. Returns None for no
    workers.
    """
    if not workers:
        return None
    seconds = {
        stage: sum(worker["seconds"][stage] for worker in workers)
        for stage in (*ON_DEVICE, *BESIDE, "wall")
    }
    busy = sum(seconds[stage] for stage in ON_DEVICE)
    seconds["idle"] = max(seconds["wall"] - busy, 0.0)
    counted: dict[str, list[tuple[float, float]]] = {}
    for worker in workers:
        if worker["joules"] is not None:  # older files have no count, and start at 0
            start, end = worker.get("counted") or (0.0, worker["joules"])
            counted.setdefault(worker["gpu"], []).append((start, end))
    return {
        "workers": len(workers),
        "seconds": seconds,
        "busy_share": (busy - seconds["load"]) / seconds["wall"] if seconds["wall"] else None,
        "joules": sum(map(_covered, counted.values())) if counted else None,
    }


def _covered(intervals: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
