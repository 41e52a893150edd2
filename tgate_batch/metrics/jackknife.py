"""Confidence intervals by the delete-a-group jackknife over 20 groups of prompts.

Every figure is a function of sums over the groups. It is computed from all groups, and without each
of them; these 21 values give its bias, standard error and interval (Quenouille 1956; Tukey 1958;
Shao and Tu, The Jackknife and Bootstrap, 1995).
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

GROUPS = 20
LEAST_PROMPTS = 2 * GROUPS  # with fewer there is no interval
LEAST_BATCHES = GROUPS  # with fewer a figure of time has no interval

TWO_SIDED = 2.093  # Student's t with 19 degrees of freedom: 95% lie within
ONE_SIDED = 1.729  # 95% lie below
_POWER = 1.328  # 90% lie below
_PILOT = 1.385  # 19 over the chi-squared (19 degrees of freedom) that 80% lie above
_NORMAL = 1.960
_FEW_CHANGES = 2 * GROUPS  # differing images: with fewer, groups do not show their correlation


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval, in the figure's unit."""

    value: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        return (self.high - self.low) / (2 * TWO_SIDED)

    @property
    def lower_bound(self) -> float:
        """The one-sided bound that the true figure exceeds in 95% of runs."""
        return self.value - ONE_SIDED / TWO_SIDED * (self.value - self.low)

    @property
    def upper_bound(self) -> float:
        """The one-sided bound that the true figure is below in 95% of runs."""
        return self.value + ONE_SIDED / TWO_SIDED * (self.high - self.value)


def groups(places: np.ndarray) -> np.ndarray:
    """Returns the group, 0 to 19, of each position [n] in a set.

    Each block of 20 consecutive positions gets the 20 groups in a pseudo-random order, by the
    blake2b hash of the block's number: groups have equal sizes, and are independent of any period
    in the set.
    """
    places = np.asarray(places, np.int64)
    if not places.size:
        return np.empty(0, np.int64)
    blocks, inverse = np.unique(places // GROUPS, return_inverse=True)
    digests = b"".join(
        blake2b(int(block).to_bytes(8, "big"), digest_size=2 * GROUPS).digest() for block in blocks
    )
    keys = np.frombuffer(digests, ">u2").reshape(len(blocks), GROUPS)
    orders = np.argsort(keys, axis=1, kind="stable")
    return orders[inverse, places % GROUPS]


def leave_one_out(sums: np.ndarray) -> np.ndarray:
    """Returns sums [21, ...] of all groups, then without each, from sums of groups [20, ...]."""
    total = sums.sum(axis=0)
    return np.concatenate([total[None], total - sums])


def estimate(values: np.ndarray) -> Estimate:
    """Returns the bias-corrected figure with its interval, from its 21 values."""
    whole, without = float(values[0]), np.asarray(values[1:], np.float64)
    mean = without.mean()
    error = np.sqrt((GROUPS - 1) / GROUPS * np.square(without - mean).sum())
    corrected = whole - (GROUPS - 1) * (mean - whole)
    return Estimate(
        float(corrected),
        float(corrected - TWO_SIDED * error),
        float(corrected + TWO_SIDED * error),
    )


def ratios(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """Returns the 21 values of one sum over another, both [20]; NaN if the divisor is 0."""
    top, bottom = leave_one_out(over), leave_one_out(under)
    return np.divide(top, bottom, out=np.full(GROUPS + 1, np.nan), where=bottom > 0)


def bonett_price(count: float, gained: float, lost: float) -> Estimate:
    """Returns the change of a share between two arms of ``count`` images, from those that differ.

    Bonett and Price 2012 (Journal of Educational and Behavioral Statistics 37, 479): 1 is added to
    each discordant count and 2 to ``count``, so the interval has a positive width even if nothing
    changes. ``value`` is the plain difference of the shares.
    """
    up, down = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = _NORMAL * np.sqrt((up + down - (up - down) ** 2) / (count + 2))
    low, high = max(up - down - half, -1.0), min(up - down + half, 1.0)
    return Estimate((gained - lost) / count, float(low), float(high))


def paired_shares(
    count: np.ndarray, gained: np.ndarray, lost: np.ndarray, images_per_prompt: float = 1.0
) -> Estimate:
    """Returns the change of a share from the counts of each group, [20] each.

    Images of one prompt tend to change together. The number of images is therefore divided by the
    design effect, the variance between groups over that of independent images. If too few images
    changed to estimate it, the images of a prompt count as one.
    """
    total, up, down = float(count.sum()), float(gained.sum()), float(lost.sum())
    shared = _design_effect(ratios(gained - lost, count), total, up, down)
    if up + down < _FEW_CHANGES:
        shared = max(shared, images_per_prompt)
    effective = bonett_price(total / shared, up / shared, down / shared)
    return Estimate((up - down) / total, effective.low, effective.high)


def _design_effect(values: np.ndarray, count: float, gained: float, lost: float) -> float:
    """Variance of the jackknife over that of independent images, at least 1."""
    independent = (gained + lost - (gained - lost) ** 2 / count) / count**2
    if independent <= 0:
        return 1.0
    return max(1.0, estimate(values).standard_error ** 2 / independent)


def prompts_needed(prompts: int, standard_error: float, difference: float) -> int:
    """Returns the number of prompts that show a difference with power 90% at a one-sided 5%.

    ``standard_error`` is that of a run of ``prompts``; it falls with their square root. It is
    itself an estimate, so the upper 80% confidence limit of the variance is used (Browne 1995,
    Statistics in Medicine 14, 1933). Raises ValueError for a difference of 0.
    """
    if difference == 0:
        raise ValueError("no number of prompts shows a difference of 0")
    errors = (ONE_SIDED + _POWER) * standard_error / difference
    return max(LEAST_PROMPTS, int(np.ceil(prompts * _PILOT * errors**2)))
