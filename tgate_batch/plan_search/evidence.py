"""How strongly the losses of a plan show that its mean loss is within a limit.

A loss is a number per prompt: the baseline's figure minus the plan's, or the other way round, so
that a positive loss is worse. NaN means that the plan delivered no image for the prompt.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_SMALLEST_SPREAD = 1e-9


@dataclass(frozen=True)
class Limit:
    """A promise about one figure: its mean loss is at most ``at_most``, in the figure's units.

    ``yes_no``: each loss is -1, 0 or 1. It is 1 if the baseline's image fulfils the figure and the
    plan's image does not.
    """

    figure: str
    at_most: float
    yes_no: bool


def count_failures_as_lost(losses: Iterable[np.ndarray], limit: Limit) -> list[np.ndarray]:
    """Replaces NaN, a plan's missing image, by the worst loss; ``losses``: an array per plan.

    The worst loss is 1 for a yes/no figure. For a score it is the largest loss of any plan in these
    arrays, and at least twice the limit.
    """
    arrays = list(losses)
    worst = 1.0
    if not limit.yes_no:
        largest = [float(np.nanmax(x)) for x in arrays if np.isfinite(x).any()]
        worst = max([*largest, 2 * limit.at_most])
    return [np.where(np.isnan(x), worst, x) for x in arrays]


def standard_errors_below(losses: np.ndarray, limit: Limit) -> float:
    """Returns by how many standard errors the mean of ``losses`` [n] is below the limit."""
    if limit.yes_no:
        return _score_test(losses, limit.at_most)
    return _corrected_t(losses, limit.at_most)


def standard_error(losses: np.ndarray, limit: Limit) -> float:
    """Returns the standard error of the mean of ``losses`` [n], as the test at the limit has it."""
    n = len(losses)
    if limit.yes_no:
        return score_error(n, int((losses > 0).sum()), int((losses < 0).sum()), limit.at_most)
    return float(losses.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")


def score_error(n: int, lost: int, gained: int, at: float) -> float:
    """Standard error of ``(lost - gained) / n`` if the true mean loss is ``at``.

    Tango 1998 (Statistics in Medicine 17, 891): the shares of lost and gained prompts are estimated
    under the restriction that they differ by ``at``.
    """
    b = (2 * n - lost + gained) * at - lost - gained
    c = -gained * at * (1 - at)
    gained_share = (-b + np.sqrt(max(b * b - 8 * n * c, 0.0))) / (4 * n)
    return float(np.sqrt(max(2 * gained_share + at * (1 - at), 1e-12) / n))


def _score_test(losses: np.ndarray, at: float) -> float:
    lost, gained = int((losses > 0).sum()), int((losses < 0).sum())
    return (at - float(losses.mean())) / score_error(len(losses), lost, gained, at)


def _corrected_t(losses: np.ndarray, at: float) -> float:
    """Student's t with Hall's correction for skewness (1992, Annals of Statistics 20, 695).

    A sample that lacks the few large losses of a skewed figure looks too good; the correction takes
    that back.
    """
    n = len(losses)
    centred = losses - losses.mean()
    spread = max(float(losses.std(ddof=1)), _SMALLEST_SPREAD) if n > 1 else np.inf
    t = (float(losses.mean()) - at) / spread * np.sqrt(n)
    skew = float(np.mean(centred**3)) / spread**3 / np.sqrt(n)
    return float(-(t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6))
