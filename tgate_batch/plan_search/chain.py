"""The chain: the few plans that are confirmed, safest first, and how they share the error."""

from collections.abc import Callable, Sequence

import numpy as np

LONGEST = 6
_SHARES = (0.6, 0.2, 0.1, 0.05, 0.03, 0.02)  # of the allowed error, along the chain
_LEAST_GAIN = 0.003  # of expected saving, that a further plan has to add


def choose_chain(savings: np.ndarray, chances: np.ndarray) -> tuple[list[int], float]:
    """Returns at most six plans, safest first, and the saving that they promise on average.

    ``savings``, ``chances``: of each plan, the share of MACs it saves, and its probability of being
    confirmed. A plan is taken to pass only if every safer plan passes, so the expected saving is
    the integral, over u from 0 to 1, of the largest saving of a plan with a chance of at least u.
    """
    levels = np.sort(chances)
    widths = np.diff([0.0, *levels])
    alone = np.where(levels[None] <= chances[:, None], savings[:, None], 0.0)
    best, worth = np.zeros(len(levels)), 0.0
    chain: list[int] = []
    while len(chain) < min(LONGEST, len(savings)):
        gains = np.maximum(alone, best) @ widths
        plan = int(gains.argmax())
        if gains[plan] < worth + (_LEAST_GAIN if chain else 1e-12):
            break
        chain.append(plan)
        worth, best = float(gains[plan]), np.maximum(best, alone[plan])
    return sorted(chain, key=lambda plan: -chances[plan]), worth


def accepted(
    chain: Sequence[int], error: float, passes: Callable[[int, float], bool]
) -> dict[int, float]:
    """Returns the accepted plans of the chain, with the level that each was accepted at.

    The fallback procedure (Wiens and Dmitrienko 2005, Journal of Biopharmaceutical Statistics 15,
    929): each plan has a share of the allowed ``error``, and a plan that is accepted hands its
    level on to the next. The probability that any accepted plan breaks its limit is at most
    ``error``. ``passes(plan, level)``: True if the plan's test at this level passes.
    """
    whole = sum(_SHARES[: len(chain)])
    levels: dict[int, float] = {}
    carried = 0.0
    for plan, share in zip(chain, _SHARES, strict=False):
        level = carried + error * share / whole
        carried = level if passes(plan, level) else 0.0
        if carried:
            levels[plan] = level
    return levels
