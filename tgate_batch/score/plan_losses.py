"""The losses of a plan against the baseline, a number per prompt, from a run's measurements."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tgate_batch.config import Config
from tgate_batch.errors import UserError
from tgate_batch.metrics.base import ImageMetric
from tgate_batch.output import layout, parquet
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run
from tgate_batch.plan_search.evidence import Limit
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.score.registry import wanted

_ONE = (0.0, 1.0)  # the range of a figure whose best value is 1

Rows = list[dict[str, Any]]
ImageKey = tuple[str, int]  # prompt id, image number


@dataclass(frozen=True)
class LossFigure:
    """A limit and the metric that it is on."""

    limit: Limit
    metric: ImageMetric

    def loss(self, plan: float, baseline: float | None) -> float:
        """Returns the loss of one image; ``baseline``: its figure if the metric is not paired."""
        if baseline is None:
            return plan if self.metric.better == "lower" else 1 - plan
        return plan - baseline if self.metric.better == "lower" else baseline - plan


def loss_figures(config: Config, limits: Mapping[str, float]) -> list[LossFigure]:
    """Returns the figures of ``limits``, figure -> at most.

    Raises UserError for a figure that the config does not measure, and for one without a loss.
    """
    known = {metric.name: metric for metric in wanted(config.score, has_baseline=True)}
    usable = {name: metric for name, metric in known.items() if _has_loss(metric)}
    images = config.sampling.images_per_prompt
    figures = []
    for name, at_most in limits.items():
        if name not in known:
            raise UserError(
                f"find_plan.limits: {name!r} is not measured by this config. Fix: use one of "
                f"{', '.join(usable)}, or name its weights in score.weights"
            )
        if name not in usable:
            raise UserError(
                f"find_plan.limits: a loss of {name} is not defined, since it has no best value. "
                f"Fix: use one of {', '.join(usable)}"
            )
        metric = known[name]
        figures.append(LossFigure(Limit(name, at_most, metric.yes_no and images == 1), metric))
    return figures


def _has_loss(metric: ImageMetric) -> bool:
    """True if the difference to the baseline is a loss: a signed one, or one from a best value."""
    better = metric.better
    if better is None:
        return False
    return not metric.needs_baseline or better == "lower" or metric.spread == _ONE


class MissingMeasurement(Exception):
    """A measurement that the search needs does not exist, or is damaged."""


@dataclass
class PlanLosses:
    """Reads losses of a model's arms, shard by shard; each file once."""

    run: Run
    model: str
    baseline: str
    figures: list[LossFigure]
    measurements: MeasurementPlan
    _known: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    _baseline: dict[int, Rows] = field(default_factory=dict)

    def of(self, arm: str, shard: ShardPlan) -> np.ndarray:
        """Returns the losses [limits, prompts] of a shard's prompts.

        Prompts without a figure of the baseline are left out; NaN: the arm has no figure. Raises
        MissingMeasurement.
        """
        key = arm, shard.index
        if key not in self._known:
            self._known[key] = self._read(arm, shard)
        return self._known[key]

    def baseline_failures(self, shard: ShardPlan) -> int:
        """Returns how many of the baseline's images of a shard failed or are broken."""
        images = self.run.config.sampling.images_per_prompt
        return shard.prompts * images - len(self._delivered(self.baseline, shard))

    def seconds_per_image(self, arm: str, shards: list[ShardPlan]) -> float | None:
        """Returns the mean of batch seconds per image over these shards, warm-up left out."""
        seconds, images = 0.0, 0.0
        for shard in shards:
            for row in self._rows(arm, shard):
                if row["status"] == "ok" and not row["warm_up"] and row["batch_seconds"]:
                    seconds += row["batch_seconds"] / row["batch_size"]
                    images += 1
        return seconds / images if images else None

    def _read(self, arm: str, shard: ShardPlan) -> np.ndarray:
        losses = np.array([self._of_figure(figure, arm, shard) for figure in self.figures])
        return losses[:, ~np.isinf(losses).any(axis=0)]

    def _of_figure(self, figure: LossFigure, arm: str, shard: ShardPlan) -> list[float]:
        """A loss per prompt: NaN if the arm lacks an image, infinite if the baseline lacks all."""
        metric, delivered = figure.metric, self._delivered(arm, shard)
        theirs: dict[ImageKey, float | None] = dict.fromkeys(self._delivered(self.baseline, shard))
        if not metric.needs_baseline:
            values = self._values(metric, self.baseline, shard)
            theirs = {key: values[key] for key in theirs if key in values}
        own = {
            key: value
            for key, value in self._values(metric, arm, shard).items()
            if key in delivered
        }
        by_prompt: dict[str, list[float]] = {}
        for key in self._images(shard):
            losses = by_prompt.setdefault(key[0], [])
            if key in theirs:
                losses.append(figure.loss(own[key], theirs[key]) if key in own else np.nan)
        return [float(np.mean(each)) if each else np.inf for each in by_prompt.values()]

    def _images(self, shard: ShardPlan) -> list[ImageKey]:
        """Every image of the shard, in the order of its prompts."""
        return _keys(self._rows(self.baseline, shard))

    def _delivered(self, arm: str, shard: ShardPlan) -> set[ImageKey]:
        """The images that were rendered and are not broken."""
        rows = self._rows(arm, shard)
        return {*_keys([row for row in rows if row["status"] == "ok" and row["broken"] is None])}

    def _values(self, metric: ImageMetric, arm: str, shard: ShardPlan) -> dict[ImageKey, float]:
        rows = [row for row in self._table(metric.name, arm, shard) if row["value"] is not None]
        return dict(zip(_keys(rows), (row["value"] for row in rows), strict=True))

    def _rows(self, arm: str, shard: ShardPlan) -> Rows:
        """The rows of a shard's images; the baseline's are kept, since every plan needs them."""
        if arm != self.baseline:
            return self._table(layout.ROWS, arm, shard)
        if shard.index not in self._baseline:
            self._baseline[shard.index] = self._table(layout.ROWS, arm, shard)
        return self._baseline[shard.index]

    def _table(self, measurement: str, arm: str, shard: ShardPlan) -> Rows:
        folder, settings = self.measurements.of_arm(self.run, self.model, arm)[measurement]
        name = layout.shard_file(folder, shard.index)
        identity = layout.file_identity(settings, shard.digest)
        try:
            table = parquet.read_table(self.run.folder, name, identity=identity)
        except parquet.DAMAGE:
            raise MissingMeasurement(f"{name} is missing or damaged") from None
        return table.to_pylist()


def _keys(rows: Rows) -> list[ImageKey]:
    return [(row["prompt_id"], row["image_number"]) for row in rows]
