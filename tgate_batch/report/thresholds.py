"""Quality gates: a run's figures held against the windows of its config.

A figure that was not measured fails its gate, so that a nightly run cannot pass by measuring less.
"""

from collections.abc import Mapping
from typing import Any

from tgate_batch.config import Limit

_BESIDE_BASELINE = {"fid_change_percent", "fd_change_percent", "psnr", "ssim", "speedup"}


def judge(
    arm: dict[str, Any], baseline: dict[str, Any] | None, limits: Mapping[str, Limit]
) -> list[dict[str, Any]]:
    """One entry a gate: its name, value, limits, ``margin`` (negative: by how much it failed),
    ``passed``, and the verdict in words. Gates beside the baseline do not judge the baseline."""
    return [
        _judged(name, _value(name, arm, baseline), limit)
        for name, limit in limits.items()
        if not (arm is baseline and name in _BESIDE_BASELINE)
    ]


def _judged(name: str, value: float | None, limit: Limit) -> dict[str, Any]:
    margins = []
    if value is not None and limit.min is not None:
        margins.append(value - limit.min)
    if value is not None and limit.max is not None:
        margins.append(limit.max - value)
    margin = min(margins, default=None)
    passed = margin is not None and margin >= 0
    window = " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", limit.min), ("at most", limit.max))
        if bound is not None
    )
    if margin is None:
        verdict = f"FAIL {name} was not measured, and must be {window}"
    elif passed:
        verdict = f"pass {name} {value:.6g} is {window}, by {margin:.4g}"
    else:
        verdict = f"FAIL {name} {value:.6g} must be {window}, missed by {-margin:.4g}"
    return {
        "gate": name,
        "value": value,
        "min": limit.min,
        "max": limit.max,
        "margin": margin,
        "passed": passed,
        "verdict": verdict,
    }


def _value(name: str, arm: dict[str, Any], baseline: dict[str, Any] | None) -> float | None:
    if name in ("errors_percent", "broken_percent"):
        count = arm[name.removesuffix("_percent")]
        rows = arm["images"] + arm["errors"]
        return 100 * count / rows if rows else None
    if name in ("fid_change_percent", "fd_change_percent"):
        key = name.removesuffix("_change_percent")
        before = None if baseline is None else baseline.get(key)
        return 100 * (arm[key] / before - 1) if before and arm.get(key) is not None else None
    if name in ("psnr", "ssim"):
        return (arm.get("paired") or {}).get(name)
    if name == "kid":
        return (arm.get("kid") or {}).get("mean")
    return arm.get(name)
