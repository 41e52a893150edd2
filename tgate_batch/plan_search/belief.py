"""What is believed of every plan's mean loss, from the losses of some plans on some prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tgate_batch.plan_search import normal

_LENGTHS = (0.25, 0.5, 1.0)  # in features, over which plans are alike
_OWN = (0.1, 0.3)  # the part of a plan's loss that its neighbours do not share
_SCALES = (0.5, 1.0, 2.0)  # times the size of the losses
_COUNTED = 15  # prompts that a plan's variance is drawn towards the average of all plans by
_SHRUNK = 30.0  # prompts that correlations between plans are drawn towards 0 by
_NEEDED = 1.9  # standard errors that a confirmation needs, on average over its looks


@dataclass(frozen=True)
class Belief:
    """The mean and standard deviation of each plan's mean loss, and the variance of one loss."""

    mean: np.ndarray
    sd: np.ndarray
    variance: np.ndarray

    def chances(self, limit: float, prompts: int) -> np.ndarray:
        """Returns the probability that each plan is confirmed on this many fresh prompts."""
        error = np.sqrt(self.variance / prompts)
        return normal.below((limit - _NEEDED * error - self.mean) / np.hypot(self.sd, error))

    def hopes(self, limit: float, prompts: int) -> np.ndarray:
        """Returns the same for plans that are better by one standard deviation than believed."""
        error = np.sqrt(self.variance / prompts)
        return normal.below((limit - _NEEDED * error - self.mean + self.sd) / error)


class Prior:
    """A Gaussian process over plans: plans with like features lose alike; the baseline loses 0.

    ``features`` [plans, f] are about 0 to 1, and ``origin`` [f] are the baseline's.
    """

    def __init__(self, features: np.ndarray, origin: np.ndarray):
        points = np.vstack([features, origin])
        distances = np.square(points[:, None] - points[None]).sum(axis=-1)
        own, common = np.eye(len(points)), 1.0  # `common`: an unknown mean of all plans
        self._shapes = [
            np.exp(-distances / (2 * length**2)) + part**2 * own + common
            for length in _LENGTHS
            for part in _OWN
        ]
        self._plans = len(features)

    def given(self, losses: Mapping[int, np.ndarray]) -> Belief:
        """Returns the belief given plan -> losses [n]; all begin with the same prompts."""
        plans = [plan for plan, x in losses.items() if len(x)]
        samples = [losses[plan] for plan in plans]
        means = np.array([x.mean() for x in samples])
        variance = self._variance(plans, samples)
        noise = _noise(samples, variance[plans])
        size = _size(means, np.sqrt(noise.diagonal()))
        at = np.array([*plans, self._plans])  # the baseline is the last point
        noise = np.pad(noise, (0, 1))
        noise[-1, -1] = (1e-3 * size) ** 2
        seen = np.append(means, 0.0)
        fits = (
            _Fit.of(scale * size, shape, at, noise, seen)
            for scale in _SCALES
            for shape in self._shapes
        )
        mean, sd = max(fits, key=lambda fit: fit.likelihood).predicted(self._plans)
        return Belief(mean, sd, variance)

    def _variance(self, plans: Sequence[int], samples: Sequence[np.ndarray]) -> np.ndarray:
        """The variance of one loss, by plan; of plans without a loss, the average."""
        counts = np.array([len(x) for x in samples])
        own = np.array([x.var() for x in samples])
        variance = np.full(self._plans, own.mean() + 1e-12)
        variance[plans] = (counts * own + _COUNTED * own.mean() + 1e-9) / (counts + _COUNTED)
        return variance


def _size(means: np.ndarray, errors: np.ndarray) -> float:
    """How large losses are, as the scale of the process."""
    return max(float(np.sqrt(np.mean(means**2))), 0.3 * float(np.sqrt(np.mean(errors**2))), 1e-9)


def _noise(samples: Sequence[np.ndarray], variance: np.ndarray) -> np.ndarray:
    """The covariance of the plans' mean losses: plans share prompts, so they err together."""
    counts = np.array([len(x) for x in samples])
    least = int(counts.min())
    shared = np.stack([x[:least] for x in samples])
    shared = shared - shared.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.mean(shared**2, axis=1)) + 1e-12
    correlation = shared @ shared.T / least / np.outer(spread, spread) * least / (least + _SHRUNK)
    np.fill_diagonal(correlation, 1.0)
    sd = np.sqrt(variance)
    return correlation * np.outer(sd, sd) / np.maximum.outer(counts, counts)


@dataclass(frozen=True)
class _Fit:
    """A process of one scale and shape, conditioned on what was measured."""

    scale: float
    shape: np.ndarray
    at: np.ndarray
    root: np.ndarray  # Cholesky's, of the covariance of what was measured
    residual: np.ndarray
    likelihood: float

    @classmethod
    def of(
        cls, scale: float, shape: np.ndarray, at: np.ndarray, noise: np.ndarray, seen: np.ndarray
    ) -> "_Fit":
        root = np.linalg.cholesky(scale**2 * shape[np.ix_(at, at)] + noise)
        residual = np.linalg.solve(root, seen - scale / 2)
        likelihood = -0.5 * residual @ residual - np.log(root.diagonal()).sum()
        return cls(scale, shape, at, root, residual, float(likelihood))

    def predicted(self, plans: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean and the standard deviation of each plan's mean loss."""
        across = np.linalg.solve(self.root, self.scale**2 * self.shape[self.at, :plans])
        variance = self.scale**2 * self.shape.diagonal()[:plans] - np.square(across).sum(axis=0)
        return self.scale / 2 + across.T @ self.residual, np.sqrt(np.maximum(variance, 1e-12))
