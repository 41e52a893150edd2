"""The registry of per-image metrics, in the order of the tables; loads those that a run needs."""

import glob
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tgate_batch.config import Score, source_of
from tgate_batch.errors import Problems, StorageError, UserError
from tgate_batch.metrics.base import ImageMetric, Measure
from tgate_batch.metrics.features import Extractor, check_extractor, load_extractor
from tgate_batch.metrics.weights import unlike_promised
from tgate_batch.models import hub
from tgate_batch.output import layout
from tgate_batch.storage import Folder, without_credentials

MODULES = (  # each defines METRIC
    "tgate_batch.metrics.psnr",
    "tgate_batch.metrics.ssim",
    "tgate_batch.metrics.lpips",
    "tgate_batch.metrics.clip",
    "tgate_batch.demo.accuracy",
)
METRICS: list[ImageMetric] = []  # those of MODULES, then those that `register` adds

EXTRACTOR = "extractor"  # the key of the first extractor under `score.weights`

Loaded = TypeVar("Loaded")


def register(module: str) -> ImageMetric:
    """Adds the ``METRIC`` of a module, given by its dotted name; once only.

    Every process that measures or reports has to register it. Raises UserError if the module cannot
    be imported or defines no ``METRIC``, or if another metric has its name.
    """
    try:
        metric = importlib.import_module(module).METRIC
    except (ImportError, AttributeError) as error:
        raise UserError(f"module {module!r} provides no metric: {error}") from None
    if not isinstance(metric, ImageMetric):
        kind = type(metric).__name__
        raise UserError(f"METRIC of module {module!r} is a {kind}. Fix: make it an ImageMetric")
    if metric in METRICS:
        return metric
    if metric.name in known():
        raise UserError(
            f"module {module!r} names its metric {metric.name!r}, like another metric. Fix: give "
            "it another name"
        )
    METRICS.append(metric)
    return metric


def known() -> tuple[str, ...]:
    """Returns the metrics' names, in the order of the tables."""
    return tuple(metric.name for metric in METRICS)


def wanted(score: Score, has_baseline: bool) -> tuple[ImageMetric, ...]:
    """Returns the metrics that a run measures.

    A metric that compares with the baseline needs a baseline; one with weights needs its key under
    ``score.weights``.
    """
    return tuple(
        metric
        for metric in METRICS
        if (has_baseline or not metric.needs_baseline)
        and (metric.weights is None or metric.weights in score.weights)
    )


def reference_of(score: Score, extractor: str) -> str | None:
    """Returns the reference of an extractor; ``{extractor}`` is replaced by its name."""
    return None if score.reference is None else with_extractor_name(score.reference, extractor)


def is_pattern(where: str) -> bool:
    """True if the last part of a path or URI is a glob pattern (``*``, ``[`` or ``?``).

    In a URI ``?`` begins the options. An existing file of that name is not a pattern.
    """
    if "://" in where:
        name = where.partition("?")[0].rpartition("/")[2]
        return "*" in name or "[" in name
    return glob.has_magic(Path(where).name) and not Path(where).exists()


def with_extractor_name(where: str, extractor: str) -> str:
    """Replaces ``{extractor}`` in a path or URI by the extractor's name."""
    return where.replace("{extractor}", layout.spelled(extractor))


def weights_of(score: Score, extractor: str) -> str | None:
    """Returns the weights' file of an extractor; None: its default."""
    return weights_of_extractors(score)[extractor]


def check(score: Score) -> None:
    """Checks the config of scoring before anything is rendered; loads no network.

    Raises UserError for an unknown extractor, an unknown key of ``score.weights``, and a file that
    does not exist. URIs and hub ids of weights are not looked up.
    """
    problems = Problems()
    for name in score.extractor:
        with problems.collected():
            check_extractor(name, weights_of(score, name))
    for key, where in score.weights.items():
        with problems.collected():
            _check_weights(score, key, where)
    problems.raise_if_any()


def check_reference(score: Score, extractor: str) -> None:
    """Raises UserError if an extractor's reference does not exist."""
    where = reference_of(score, extractor)
    if where is None or where == "drawn":
        return
    if (how := source_of(str(score.reference))) is not None and not Path(where).exists():
        raise UserError(f"score.reference: {where} does not exist: {how}")
    if is_pattern(where):
        return
    hint = (
        "make it with tgate-batch reference, give a folder of images, or remove the key for a run "
        "without distances"
    )
    if "://" not in where:
        _check_exists("reference", where, hint)
        return
    try:
        folder, name = Folder.of_file(where)
        exists = folder.without_retries.has_entry(name)
    except (StorageError, UserError) as error:
        raise UserError(f"score.reference: {error}") from None
    if not exists:
        shown = without_credentials(where)
        raise UserError(f"score.reference: {shown} does not exist. Fix: {hint}")


def _check_weights(score: Score, key: str, where: str) -> None:
    users = {metric.weights: metric for metric in METRICS if metric.weights is not None}
    if key == EXTRACTOR or key in score.extractor:
        hint = "give the extractor's weights, or remove the key to use its default"
        _check_exists(f"weights.{key}", where, hint)
    elif key not in users:
        keys = ", ".join((*users, EXTRACTOR, *score.extractor))
        raise UserError(f"score.weights: unknown key {key!r}. Fix: use one of: {keys}")
    elif not users[key].may_be_hub_id:
        hint = f"give {users[key].weights_are}, or remove the key"
        _check_exists(f"weights.{key}", where, hint)


def check_weights(score: Score, has_baseline: bool) -> None:
    """Loads every extractor and every metric with weights that a run needs, on the CPU, once.

    A hub id that is not in the local cache is looked up at the hub, but not downloaded. Raises
    UserError with one line per problem.
    """
    problems = Problems()
    for name, where in weights_of_extractors(score).items():
        if score.reference is not None and (where is None or Path(where).expanduser().exists()):
            with problems.collected():
                check_extractor(name, where)
                load_extractor(name, where)
    for metric in wanted(score, has_baseline):
        if metric.weights is None:
            continue
        where = score.weights[metric.weights]
        with problems.collected():
            if Path(where).expanduser().exists():
                metric.load(where, "cpu")
            elif metric.may_be_hub_id and hub.cached(where, "config.json") is None:
                hub.check(where, None, f"score.weights.{metric.weights}")
    problems.raise_if_any()


def weights_of_extractors(score: Score) -> dict[str, str | None]:
    """Returns each extractor's weights, in the config's order; None: its default.

    Their keys under ``score.weights`` are the extractors' names, or ``extractor`` for the first.
    """
    weights = {name: score.weights.get(name) for name in score.extractor}
    first = score.extractor[0]
    weights[first] = weights[first] or score.weights.get(EXTRACTOR)
    return weights


def _check_exists(key: str, where: str, hint: str) -> None:
    if "://" not in where and not Path(where).expanduser().exists():
        raise UserError(f"score.{key}: {where} does not exist. Fix: {hint}")


@dataclass(frozen=True)
class LoadedMetrics:
    """The loaded extractors and metrics of a run; ``problems`` has a line for each that failed.

    ``weights``: measurement -> the path of its weights, and their sha256.
    """

    extractors: tuple[Extractor, ...]
    measures: tuple[tuple[ImageMetric, Measure], ...]
    problems: tuple[str, ...]
    weights: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def promised(self, weights: Mapping[str, str | None]) -> "LoadedMetrics":
        """Removes those with other weights (measurement -> sha256); each becomes a problem."""
        refused = {
            name: unlike_promised(name, *self.weights[name], wanted)
            for name, wanted in weights.items()
            if wanted is not None and name in self.weights and self.weights[name][1] != wanted
        }
        return LoadedMetrics(
            tuple(each for each in self.extractors if features_of(each.name) not in refused),
            tuple(pair for pair in self.measures if pair[0].name not in refused),
            (*self.problems, *refused.values()),
            self.weights,
        )


def features_of(extractor: str) -> str:
    """Returns the measurement with an extractor's features; no metric can have this name."""
    return f"features of {extractor}"


def load_metrics(score: Score, has_baseline: bool, device: str) -> LoadedMetrics:
    """Loads the extractors (if there is a reference) and the metrics that a run needs.

    One that cannot be loaded is a problem and does not stop the others.
    """
    problems: list[str] = []

    def attempt(load: Callable[..., Loaded], *arguments: str | None) -> Loaded | None:
        try:
            return load(*arguments, device)
        except UserError as error:
            problems.append(str(error))
            return None

    weights: dict[str, tuple[str, str]] = {}
    extractors = []
    if score.reference is not None:
        for name, where in weights_of_extractors(score).items():
            extractor = attempt(load_extractor, name, where)
            if extractor is not None:
                extractors.append(extractor)
                weights[features_of(extractor.name)] = (
                    where or "its default path",
                    extractor.sha256,
                )
    measures = []
    for metric in wanted(score, has_baseline):
        where = None if metric.weights is None else score.weights[metric.weights]
        measure = attempt(metric.load, where)
        if measure is not None:
            measures.append((metric, measure))
            if where is not None:
                weights[metric.name] = (where, metric.fingerprint(where))
    return LoadedMetrics(tuple(extractors), tuple(measures), tuple(problems), weights)


for _module in MODULES:
    register(_module)
