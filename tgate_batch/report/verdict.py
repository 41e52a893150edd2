"""The verdict on each arm, in one sentence, from the entries of report.json."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

from tgate_batch.metrics.jackknife import Estimate, prompts_needed
from tgate_batch.report.columns import ArmFigures, Column, columns

_FEW_PROMPTS = 100  # compared: with fewer, an interval that includes 0 includes large changes too
_MARGIN = 1.1  # a speed-up may exceed the limit of the saved MACs by this factor without a remark

Standing = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one arm.

    ``sentence`` describes speed and quality, without a full stop; ``saving`` is the cost saved,
    None if no price is known; ``thresholds`` counts thresholds by result, without zeros.
    """

    model: str
    arm: str
    sentence: str
    saving: str | None
    thresholds: Mapping[Standing, int]

    def __str__(self) -> str:
        """Returns the whole verdict in one line, for a terminal."""
        parts = [self.sentence, *([self.saving] if self.saving else [])]
        if self.thresholds:
            counts = ", ".join(f"{n} {standing}" for standing, n in self.thresholds.items())
            parts.append(f"thresholds: {counts}")
        return "; ".join(parts)


def verdicts(summary: Mapping[str, Any]) -> list[str]:
    """Returns one line per arm, from the content of report.json."""
    return [str(verdict) for verdict in judge_arms(summary)]


def judge_arms(summary: Mapping[str, Any]) -> list[Verdict]:
    """Returns one verdict per arm, except for a baseline that other arms are compared with."""
    arms = summary["arms"]
    several = len({arm["model"] for arm in arms}) > 1
    baselines = {arm["model"]: arm for arm in arms if arm["is_baseline"]}
    compared = {arm["model"] for arm in arms if not arm["is_baseline"]}
    return [
        _verdict(arm, baselines.get(arm["model"]), arms, several)
        for arm in arms
        if not (arm["is_baseline"] and arm["model"] in compared)
    ]


def standing(threshold: Mapping[str, Any]) -> Standing:
    """Returns the result of a judged threshold."""
    if not threshold["decided"]:
        return "undecided"
    return "passed" if threshold["passed"] else "failed"


def _verdict(
    arm: ArmFigures, baseline: ArmFigures | None, arms: Sequence[ArmFigures], several: bool
) -> Verdict:
    name = f"{arm['model']} {arm['arm']}" if several else arm["arm"]
    other = None if arm["is_baseline"] else baseline
    counts = Counter(map(standing, arm.get("thresholds") or ()))
    return Verdict(
        arm["model"],
        arm["arm"],
        f"{name} {_sentence(arm, other, arms)}",
        None if other is None else _saving(arm, other),
        {key: counts[key] for key in get_args(Standing) if key in counts},
    )


def _sentence(arm: ArmFigures, baseline: ArmFigures | None, arms: Sequence[ArmFigures]) -> str:
    """Describes the arm's speed, quality and failures."""
    if not arm["images"]:
        return f"has no images: {_all_failed(arm)}"
    text = _alone(arm) if baseline is None else f"{_speed(arm)}, {_quality(arm, baseline, arms)}"
    if arm["errors"]:
        text += f"; {arm['errors']:,} of {arm['images'] + arm['errors']:,} images failed"
    return text


def _all_failed(arm: ArmFigures) -> str:
    if not arm["errors"]:
        return "nothing was rendered"
    kinds = arm.get("error_kinds") or []
    return f"all {arm['errors']:,} failed" + (f" ({kinds[0]['error']})" if kinds else "")


def _alone(arm: ArmFigures) -> str:
    rate = _column("images_per_second_per_worker", [arm]).show(arm)
    if arm["images_per_second_per_worker"] is None:
        return f"rendered {arm['images']:,} images; its speed was not measured"
    why = "it is the baseline" if arm["is_baseline"] else "no baseline"
    return f"renders {rate} images a second with each worker ({why}: no comparison)"


def _speed(arm: ArmFigures) -> str:
    value, bounds = arm["speedup"], arm.get("speedup_interval")
    if value is None:
        return "has no measured speed-up"
    times = f"renders {value:.2f}"
    if bounds is None:
        text = f"{times} times as many images a second (too few batches for an interval)"
        return text + _above_limit(arm, value)
    text = f"{times} [{bounds['low']:.2f}, {bounds['high']:.2f}] times as many images a second"
    text += _above_limit(arm, bounds["low"])
    if bounds["low"] <= 1 <= bounds["high"]:
        return f"{text} (no resolvable change of speed)"
    return text


def _above_limit(arm: ArmFigures, least: float) -> str:
    """A remark if the speed-up (at least ``least``) exceeds what the saved MACs explain."""
    saved = arm.get("macs_saved")
    if (
        saved is None
        or saved >= 1
        or arm["speedup"] <= _MARGIN / (1 - saved)
        or least * (1 - saved) <= 1
    ):
        return ""
    return (
        f" (the saved MACs explain {1 / (1 - saved):.2f} at most: measure again on a machine "
        "without other load)"
    )


def _quality(arm: ArmFigures, baseline: ArmFigures, arms: Sequence[ArmFigures]) -> str:
    if not baseline["images"]:
        return "and the baseline has no images to compare with"
    texts = [_change(column, arm, arms) for column in changes(arm, arms)]
    return " and ".join(texts) or "and no change of quality was measured"


def changes(arm: ArmFigures, arms: Sequence[ArmFigures]) -> Iterator[Column]:
    """Yields the changes that the verdict reports as quality.

    Changes of headline metrics, and of the Frechet distance if it is comparable; the kernel
    distance only if there is nothing else.
    """
    known = [c for c in columns(arms) if c.headline and c.tables and c.value(arm) is not None]
    images = [column for column in known if "images" in column.tables]
    distances = [column for column in known if column.of in ("fid", "fd")]
    yield from [*images, *distances] or known


def _change(column: Column, arm: ArmFigures, arms: Sequence[ArmFigures]) -> str:
    higher = column.better == "higher"
    worse, better = ("loss", "gain") if higher else ("rise", "fall")
    shown, bounds = column.show(arm, brief=True), column.bounds(arm)
    word = column.heading.removesuffix(" change")
    if "images" in column.tables and column.of is not None:
        word = _column(column.of, arms).heading
    sign = 1 if higher else -1
    if bounds is None:
        return f"with a change of {word} of {shown} (too few prompts for an interval)"
    low, high = sorted((sign * bounds["low"], sign * bounds["high"]))
    if high < 0:
        return f"at a {worse} of {word} ({shown})"
    if low > 0:
        return f"at a {better} of {word} ({shown})"
    change = worse if sign * bounds["value"] <= 0 else better
    if _prompts(arm) < _FEW_PROMPTS:
        return f"with too few prompts to tell a {change} of {word} ({shown}){_needed(arm, bounds)}"
    return f"at no resolvable {change} of {word} ({shown})"


def _prompts(arm: ArmFigures) -> float:
    return arm.get("prompts_compared") or arm.get("prompts") or inf


def _needed(arm: ArmFigures, bounds: Mapping[str, float]) -> str:
    """The number of prompts that would show a change as large as the observed one."""
    if bounds["value"] == 0:
        return ""
    error = Estimate(bounds["value"], bounds["low"], bounds["high"]).standard_error
    needed = prompts_needed(int(_prompts(arm)), error, bounds["value"])
    return f": about {needed:,} would suffice"


def _column(name: str, arms: Sequence[ArmFigures]) -> Column:
    return next(column for column in columns(arms) if column.name == name)


def _saving(arm: ArmFigures, baseline: ArmFigures) -> str | None:
    """The saving per 1,000 images, from denoising and decoding time, as in the speed-up."""
    mine, other = arm["usd_per_1000_images"], baseline["usd_per_1000_images"]
    if mine is None or other is None:
        return None
    saved, bounds = other - mine, arm.get("speedup_interval")
    verb, more = ("saves", "") if saved >= 0 else ("costs", " more")
    sign = 1 if saved >= 0 else -1
    between = ""
    if bounds is not None and bounds["low"] > 0:  # cost is proportional to time
        ends = sorted(sign * other * (1 - 1 / bounds[end]) for end in ("low", "high"))
        between = f" [{', '.join(_money(end, other) for end in ends)}]"
    return (
        f"{verb} ${_money(abs(saved), other)}{between}{more} per 1,000 images "
        f"(${_money(mine, other)} for ${_money(other, other)})"
    )


def _money(amount: float, baseline: float) -> str:
    """An amount with enough decimal places to distinguish it from the baseline's."""
    return f"{amount:,.2f}" if baseline >= 10 else f"{amount:.4f}"
