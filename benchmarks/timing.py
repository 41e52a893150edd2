"""Calls timed in turns, so that a busy machine slows all of them alike; and their ratios."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tgate_batch.execute.progress import WorkCounter


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    what: str = "measuring",
) -> dict[str, list[float]]:
    """Seconds of every call in each of ``rounds`` rounds, after a round that warms up.

    ``what`` is measured, for the lines that say how far it is.
    """
    progress = WorkCounter(what, "rounds", rounds + 1)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            _settle()
            start = clock()
            call()
            _settle()
            seconds[name].append(clock() - start)
            progress.tick()
        progress.add()
    progress.log()
    return {name: measured[1:] for name, measured in seconds.items()}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """``over`` / ``under``, round by round: median, smallest and largest."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
