"""Thresholds: checks a run's figures against the tests and windows of its config.

A test passes only if the figure's whole interval satisfies the threshold, and fails only if the
whole interval violates it; otherwise it is undecided. A window bounds the value itself. A figure
that was not measured fails its threshold, so that a nightly run cannot pass by measuring less.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from tgate_batch.config import Config, Threshold, Thresholds
from tgate_batch.errors import UserError
from tgate_batch.metrics.cost import Devices
from tgate_batch.metrics.jackknife import Estimate, prompts_needed
from tgate_batch.report.columns import ArmFigures, Column, columns
from tgate_batch.score.registry import METRICS

_TESTS = ("no_worse_than", "at_least", "at_most")


def known() -> tuple[str, ...]:
    """The figures that a threshold may bound, in the order of the report's columns."""
    return tuple(_bounded())


def check(thresholds: Mapping[str, Threshold]) -> None:
    """Raises UserError for a threshold that can judge nothing.

    These are: an unknown figure, ``no_worse_than`` on a figure that is not a change, and a test
    on a figure that never has an interval.
    """
    bounded = _bounded()
    for name, threshold in thresholds.items():
        if name not in bounded:
            raise UserError(_unknown(name, bounded))
        test, column = _test(threshold), bounded[name]
        if test is None:
            continue
        if not column.interval:
            raise UserError(
                f"thresholds: {name} has no interval for {test} to test. Fix: give it a window "
                "on the value (min, max)"
            )
        if test == "no_worse_than" and not column.change:
            changes = ", ".join(other for other, each in bounded.items() if each.change)
            raise UserError(
                f"thresholds: no_worse_than tests changes, and {name} is not a change. Fix: use "
                f"at_least or at_most, or one of: {changes}"
            )


def markdown() -> str:
    """Returns the table of docs/metrics.md: every figure that a threshold may bound."""
    lines = ["| figure | key of an arm in report.json | better | tests |", "|---|---|---|---|"]
    for name, column in _bounded().items():
        key = f"`{_key(column)}`"
        if column.derive:
            key = f"`{name.removesuffix('_percent')}`, as percent of all rows"
        tests = _TESTS[1:] if column.interval else ()
        tests = (*tests, "no_worse_than") if column.change and column.interval else tests
        words = ", ".join(f"`{test}`" for test in (*tests, "min", "max"))
        lines.append(f"| `{name}` | {key} | {column.better or ''} | {words} |")
    return "\n".join(lines) + "\n"


def _key(column: Column) -> str:
    return ".".join(column.path or (column.name,))


def _unknown(name: str, bounded: Mapping[str, Column]) -> str:
    """The error for an unknown figure, with similar names; a key of report.json is also found."""
    by_key = [
        other
        for other, column in bounded.items()
        if name in (_key(column), _key(column).removesuffix(".value"))
    ]
    near = by_key or get_close_matches(name, bounded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(bounded)}."
    return (
        f"thresholds: unknown figure {name!r}; {hint} Fix: use a figure of the table under "
        "Thresholds in docs/metrics.md"
    )


def check_measured(config: Config) -> None:
    """Raises UserError for a threshold on a figure that this config never measures."""
    for name in config.thresholds.figures:
        if problem := _unmeasured(name, _bounded()[name], config):
            raise UserError(f"thresholds: {name} is never measured by this config: {problem}")


def _unmeasured(name: str, column: Column, config: Config) -> str | None:
    """What a figure needs that the config lacks, and how to add it; None if nothing is missing."""
    metric = next((m for m in METRICS if m.name in (name, column.of)), None)
    weights = metric and metric.weights
    if column.beside_baseline and config.baseline is None:
        return "no arm is a baseline. Fix: add one without a plan, e.g. baseline: {}"
    if weights is not None and weights not in config.score.weights:
        return f"it has no weights. Fix: set score.weights.{weights}"
    if "sets" in column.tables and config.score.reference is None:
        return "there is no reference. Fix: set score.reference"
    if "fid" in (name, column.of) and "inception" not in config.score.extractor:
        return "FID needs the extractor inception. Fix: add it to score.extractor, or bound fd"
    if "fd" in (name, column.of) and set(config.score.extractor) == {"inception"}:
        return "with the extractor inception the distance is FID. Fix: bound fid"
    devices = Devices.of(config.cost, config.workers.gpus_each, config.workers.cpus_each)
    if name.startswith("usd_") and devices.unpriced:
        return f"{devices.unpriced}. Fix: set {devices.key}"
    return None


def judge(
    arm: ArmFigures, baseline: ArmFigures | None, thresholds: Thresholds
) -> list[dict[str, Any]]:
    """Returns one entry per threshold, for an arm's entry of report.json and its baseline's.

    An entry has the threshold's name, the value, the config's bounds, ``margin`` (negative if it
    failed; for a test the margin of the tested bound), ``decided``, ``passed``, and the verdict in
    words. Comparisons with the baseline do not judge the baseline. Raises UserError like ``check``.
    """
    check(thresholds.figures)
    bounded = _bounded()
    return [
        _judged(bounded[name], arm, baseline, threshold, thresholds.undecided == "pass")
        for name, threshold in thresholds.figures.items()
        if not (arm is baseline and bounded[name].beside_baseline)
    ]


def _bounded() -> dict[str, Column]:
    return {column.name: column for column in columns() if column.bounded}


def _test(threshold: Threshold) -> str | None:
    return next((name for name in _TESTS if getattr(threshold, name) is not None), None)


def _judged(
    column: Column,
    arm: ArmFigures,
    baseline: ArmFigures | None,
    threshold: Threshold,
    lenient: bool,
) -> dict[str, Any]:
    value, test, reason = column.value(arm, baseline), _test(threshold), column.reason(arm)
    bounds = None if value is None else column.bounds(arm)
    # A figure that is withheld itself has a reason; any other was not measured.
    withheld = reason is not None and column.path == (*column.interval, "value")
    if value is None and not withheld:
        must = _window(threshold) if test is None else _WORDS[test].format(getattr(threshold, test))
        result = _Result(False, f"FAIL {column.name} was not measured, and must be {must}")
    elif value is None or (test is not None and bounds is None):
        result = _Result(None, f"undecided {column.name}: {reason or 'it has no interval'}")
    elif test is None:
        result = _of_window(column.name, value, threshold)
    else:
        assert bounds is not None
        estimate = Estimate(bounds["value"], bounds["low"], bounds["high"])
        higher = column.better == "higher" if test == "no_worse_than" else test == "at_least"
        result = _of_test(column.name, estimate, getattr(threshold, test), higher, test, arm)
    return {
        "threshold": column.name,
        "gate": column.name,  # its older key, for this version
        "value": value,
        "interval": None if bounds is None else dict(bounds),
        **dict(threshold),
        "margin": result.margin,
        "decided": result.passed is not None,
        "passed": lenient if result.passed is None else result.passed,
        "verdict": result.verdict,
    }


class _Result:
    """The result of a threshold; ``passed`` is None if undecided."""

    def __init__(self, passed: bool | None, verdict: str, margin: float | None = None):
        self.passed, self.verdict, self.margin = passed, verdict, margin


_WORDS = {
    "no_worse_than": "no worse than {:g}",
    "at_least": "at least {:g}",
    "at_most": "at most {:g}",
}


def _window(threshold: Threshold) -> str:
    return " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", threshold.min), ("at most", threshold.max))
        if bound is not None
    )


def _of_window(name: str, value: float, threshold: Threshold) -> _Result:
    margins = []
    if threshold.min is not None:
        margins.append(value - threshold.min)
    if threshold.max is not None:
        margins.append(threshold.max - value)
    margin, window = min(margins), _window(threshold)
    if margin >= 0:
        text = f"pass {name} {value:.6g} is {window}, by {margin:.4g} (a window on the value)"
    else:
        text = f"FAIL {name} {value:.6g} must be {window}, missed by {-margin:.4g} (a window)"
    return _Result(margin >= 0, text, margin)


def _of_test(
    name: str, figure: Estimate, limit: float, higher: bool, test: str, arm: ArmFigures
) -> _Result:
    """Judges an interval's bound; ``higher``: values above the limit pass."""
    near, far = figure.lower_bound, figure.upper_bound
    words = ("lower", "upper")
    if not higher:
        near, far, words = far, near, words[::-1]
    sign = 1 if higher else -1
    margin, value, must = sign * (near - limit), f"{figure.value:.4g}", _WORDS[test].format(limit)
    if margin >= 0:
        text = f"pass {name} {value} is {must}: its {words[0]} bound is {near:.4g}"
        return _Result(True, text, margin)
    if sign * (far - limit) < 0:
        text = f"FAIL {name} {value} must be {must}: its {words[1]} bound is {far:.4g}"
        return _Result(False, text, sign * (far - limit))
    more = _more_prompts(figure, limit, arm)
    between = f"undecided {name} {value} [{figure.low:.4g}, {figure.high:.4g}] must be {must}"
    if sign * (figure.value - limit) < 0:
        text = f"{between}; {more} would probably confirm the failure"
    else:
        text = f"{between}; {more} would suffice"
    return _Result(None, text, margin)


def _more_prompts(figure: Estimate, limit: float, arm: ArmFigures) -> str:
    """The number of additional prompts that would separate the value from the limit."""
    prompts, difference = arm.get("prompts_compared") or arm.get("prompts"), figure.value - limit
    if not prompts or difference == 0:
        return "more prompts"
    more = prompts_needed(prompts, figure.standard_error, difference) - prompts
    return f"about {more:,} more prompts"
