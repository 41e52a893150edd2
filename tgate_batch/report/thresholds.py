"""Thresholds: a run's figures held against the windows of its config.

A figure that was not measured fails its threshold, so that a nightly run cannot pass by measuring
less.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tgate_batch.config import Threshold
from tgate_batch.errors import UserError
from tgate_batch.metrics.entry import Arm, Column
from tgate_batch.report.columns import columns


def known() -> tuple[str, ...]:
    """The figures that a threshold may bound, in the order of the report's columns."""
    return tuple(_bounded())


def check(thresholds: Iterable[str]) -> None:
    """Raises UserError for a threshold on something else than a figure of the report."""
    for name in thresholds:
        if name not in _bounded():
            raise UserError(f"thresholds: unknown figure {name!r}; one of: {', '.join(known())}")


def judge(
    arm: Arm, baseline: Arm | None, thresholds: Mapping[str, Threshold]
) -> list[dict[str, Any]]:
    """One entry a threshold, for an arm's entry of report.json and its baseline's.

    An entry has the threshold's name, the value, the bounds, ``margin`` (negative: by how much it
    failed), ``passed``, and the verdict in words. Comparisons with the baseline do not judge the
    baseline. Raises UserError for an unknown name.
    """
    check(thresholds)
    bounded = _bounded()
    return [
        _judged(name, bounded[name].value(arm, baseline), threshold)
        for name, threshold in thresholds.items()
        if not (arm is baseline and bounded[name].beside_baseline)
    ]


def _bounded() -> dict[str, Column]:
    return {column.name: column for column in columns() if column.bounded}


def _judged(name: str, value: float | None, threshold: Threshold) -> dict[str, Any]:
    margins = []
    if value is not None and threshold.min is not None:
        margins.append(value - threshold.min)
    if value is not None and threshold.max is not None:
        margins.append(threshold.max - value)
    margin = min(margins, default=None)
    passed = margin is not None and margin >= 0
    window = " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", threshold.min), ("at most", threshold.max))
        if bound is not None
    )
    if margin is None:
        verdict = f"FAIL {name} was not measured, and must be {window}"
    elif passed:
        verdict = f"pass {name} {value:.6g} is {window}, by {margin:.4g}"
    else:
        verdict = f"FAIL {name} {value:.6g} must be {window}, missed by {-margin:.4g}"
    return {
        "threshold": name,
        "gate": name,  # its older key, for this version
        "value": value,
        "min": threshold.min,
        "max": threshold.max,
        "margin": margin,
        "passed": passed,
        "verdict": verdict,
    }
