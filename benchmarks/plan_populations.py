"""Made-up populations of prompts, in which the true mean loss of every plan is known.

They are shaped after the embedded model's table: few steps lose, an early gate loses more, most of
the guidance can end without a loss, and plans lose on the same prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tgate_batch.config import Arm
from tgate_batch.plan_search.candidates import candidates, features_of, name_of, thin
from tgate_batch.plan_search.normal import below

STEPS = 25
PROMPTS = 20_000
FAMILIES = ("steps", "gate", "guidance", "deepcache")

_CROSS, _SELF = 0.08, 0.12  # of a step's MACs, in the embedded model
_SHALLOW = 0.18  # of a step's MACs: what DeepCache computes at every step
_RIGHT = 0.93  # of the baseline's images fulfil a yes/no figure
# Losses by the part of the steps with guidance, and by the number of steps: places, losses.
_GUIDED = (
    (0, 0.04, 0.12, 0.2, 0.32, 0.4, 0.48, 0.6, 0.8, 1),
    (0.36, 0.36, 0.277, 0.134, 0.03, 0.007, -0.005, -0.007, -0.009, 0),
)
_FEW_STEPS = (
    (4, 5, 6, 8, 10, 12, 15, 18, 25),
    (0.6, 0.4, 0.25, 0.14, 0.06, 0.035, 0.018, 0.009, 0),
)


@dataclass(frozen=True)
class Population:
    """Plans, and their losses on every prompt: ``losses`` [limits, plans, prompts, images]."""

    arms: Sequence[Arm]
    savings: np.ndarray
    features: np.ndarray
    origin: np.ndarray
    losses: np.ndarray

    @property
    def names(self) -> list[str]:
        return [name_of(arm) for arm in self.arms]

    @property
    def truth(self) -> np.ndarray:
        """The mean losses [limits, plans]."""
        return self.losses.mean(axis=(2, 3))


def card() -> Population:
    """Losses like those of the embedded model's card: smooth, harmful plans among harmless ones."""
    arms = _arms()
    losses = np.array([_card_loss(arm) for arm in arms])
    changed = np.array([_card_changed(arm) for arm in arms])
    return made(losses, np.maximum(changed, 1.1 * np.abs(losses) + 0.005))


def made(
    losses: np.ndarray | float,
    changed: np.ndarray | float,
    images: int = 1,
    within: float = 0.0,
    seed: int = 0,
) -> Population:
    """Yes/no losses with these true means [plans] and shares of changed images.

    ``images`` of each prompt, whose noise has the correlation ``within``.
    """
    arms = _arms()
    rng = np.random.default_rng(seed)
    ok = below(_noise(rng, images, within)) < _RIGHT
    common, by_steps = _noise(rng, images, within), _noise(rng, images, within)
    rest = _noise(rng, images, within)
    table = np.zeros((len(arms), PROMPTS, images), np.int8)
    means, shares = (np.broadcast_to(each, len(arms)) for each in (losses, changed))
    for plan, arm in enumerate(arms):
        alike = by_steps if arm.steps else rest
        own = _noise(rng, images, within)
        u = below(np.sqrt(0.5) * common + 0.5 * alike + 0.5 * own)
        mean, share = means[plan], max(shares[plan], abs(means[plan]) + 1e-6)
        gained = min((share - mean) / 2, 1 - _RIGHT)
        lost = mean + gained
        table[plan] = np.where(ok & (u < lost / _RIGHT), 1, 0)
        table[plan] -= (~ok & (u < gained / (1 - _RIGHT))).astype(np.int8)
    return _population(arms, table[None])


def boundary(beyond: float = 0.0001, limit: float = 0.02) -> Population:
    """Every plan's true loss is ``beyond`` the limit."""
    population = made(limit + beyond, 0.09)
    # The sample's own error is taken out: means are exact.
    table = population.losses[0, :, :, 0]
    for row in table:
        excess = round((row.mean() - (limit + beyond)) * len(row))
        spare = np.flatnonzero(row == (1 if excess > 0 else 0))[: abs(excess)]
        row[spare] -= np.sign(excess)
    return population


def harmful() -> Population:
    """Every plan loses 5 points or more."""
    population = card()
    losses = np.maximum(population.truth[0], 0) + 0.05
    return made(losses, losses + 0.08)


def harmless() -> Population:
    """No plan loses anything."""
    population = card()
    changed = (population.losses[0] != 0).mean(axis=(1, 2))
    return made(np.minimum(population.truth[0], 0) - 0.004, np.minimum(changed, 0.08))


def without_order(seed: int = 4) -> Population:
    """The card's losses, dealt to plans at random: near plans are not alike."""
    population = card()
    order = np.random.default_rng(seed).permutation(len(population.arms))
    changed = (population.losses[0] != 0).mean(axis=(1, 2))
    return made(population.truth[0][order], changed[order])


def clustered() -> Population:
    """Four images of each prompt, which change together; every plan loses 2.6 points."""
    return made(0.026, 0.09, images=4, within=0.6)


def skewed(limit: float = 0.5, beyond: float = 0.001, seed: int = 5) -> Population:
    """A score whose losses are skewed: most prompts lose little, a few lose much.

    Every plan's true loss is ``beyond`` the limit.
    """
    arms = _arms()
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=PROMPTS)
    rows = []
    for saving in _savings(arms):
        latent = 0.7 * shared + np.sqrt(1 - 0.49) * rng.normal(size=PROMPTS)
        row = np.exp(0.7 * latent) * (0.5 + saving)
        rows.append(row - row.mean() + limit + beyond)
    return _population(arms, np.array(rows)[None, :, :, None])


def with_score(population: Population, seed: int = 5) -> Population:
    """The population with a second figure, a score that falls with the saving."""
    rng = np.random.default_rng(seed)
    first = population.losses[0].astype(float)
    savings = population.savings[:, None, None]
    noise = rng.normal(size=first.shape) * np.sqrt(savings)
    second = 0.15 * first + 0.2 * noise + 0.1 * savings**2
    return replace(population, losses=np.stack([first, second]))


def _population(arms: Sequence[Arm], losses: np.ndarray) -> Population:
    features = np.array([features_of(arm, STEPS) for arm in arms])
    return Population(arms, _savings(arms), features, features_of(Arm(), STEPS), losses)


def _arms() -> list[Arm]:
    arms = candidates(STEPS, FAMILIES)
    kept = thin(arms, np.array([features_of(arm, STEPS) for arm in arms]))
    return [arms[place] for place in kept]


def _savings(arms: Sequence[Arm]) -> np.ndarray:
    """The share of the embedded model's MACs that each arm saves, about."""
    return np.array([1 - _work(arm) for arm in arms])


def _work(arm: Arm) -> float:
    guided, _, cross, own, steps = features_of(arm, STEPS)[:5]
    deep = 1 if arm.cache is None else 1 / arm.cache.interval
    attention = _CROSS * (1 - 2 * cross) + _SELF * (1 - 2 * own)
    return float(steps * ((1 + guided) / 2) * (1 - attention) * (deep + _SHALLOW * (1 - deep)))


def _card_loss(arm: Arm) -> float:
    guided = float(features_of(arm, STEPS)[0])
    loss = float(np.interp(arm.steps or STEPS, *_FEW_STEPS))
    if arm.guidance is not None:
        loss += float(np.interp(guided + 0.06, *_GUIDED))
    if arm.plan is not None:
        loss += float(np.interp(guided + (0 if arm.steps is None else 0.05), *_GUIDED))
        loss += 0.003 * (arm.sp_interval > 1)
    if arm.cache is not None:
        loss += {2: 0.01, 3: 0.03, 5: 0.12}[arm.cache.interval]
    return loss


def _card_changed(arm: Arm) -> float:
    """The share of images of which the answer changes."""
    guided = float(features_of(arm, STEPS)[0])
    part = 0.09 if arm.guidance is not None else 0.13
    changed = 0.02 + part * (1 - guided)
    changed += float(np.interp(arm.steps or STEPS, (8, 25), (0.12, 0)))
    if arm.cache is not None:
        changed += {2: 0.04, 3: 0.06, 5: 0.12}[arm.cache.interval]
    return changed + 0.01 * (arm.sp_interval > 1)


def _noise(rng: np.random.Generator, images: int, within: float) -> np.ndarray:
    """Normal noise [prompts, images]; a prompt's images have the correlation ``within``."""
    of_prompt = rng.normal(size=(PROMPTS, 1))
    if images == 1:
        return of_prompt
    own = rng.normal(size=(PROMPTS, images))
    return np.sqrt(within) * of_prompt + np.sqrt(1 - within) * own
