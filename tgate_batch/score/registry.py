"""Every metric of single images, in the order of the tables, and what a run wants of them."""

import glob
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tgate_batch.config import Score, source_of
from tgate_batch.errors import Problems, StorageError, UserError
from tgate_batch.metrics.base import Measure, PictureMetric
from tgate_batch.metrics.features import Extractor, check_extractor, load_extractor
from tgate_batch.metrics.weights import unlike_promised
from tgate_batch.models import hub
from tgate_batch.output import layout
from tgate_batch.storage import Folder, without_credentials

MODULES = (  # each has a METRIC
    "tgate_batch.metrics.psnr",
    "tgate_batch.metrics.ssim",
    "tgate_batch.metrics.lpips",
    "tgate_batch.metrics.clip",
    "tgate_batch.demo.accuracy",
)
METRICS: list[PictureMetric] = []  # those of MODULES, then what `register` adds

EXTRACTOR = "extractor"  # the key under `score.weights` that belongs to no metric

Loaded = TypeVar("Loaded")


def register(module: str) -> PictureMetric:
    """Adds the ``METRIC`` of a module, given by its dotted name; a second time changes nothing.

    Every process that measures or reports has to register it. Raises UserError where the module
    cannot be imported or has no such entry, and where another metric has its name.
    """
    try:
        metric = importlib.import_module(module).METRIC
    except (ImportError, AttributeError) as error:
        raise UserError(f"no metric can be had from module {module!r}: {error}") from None
    if not isinstance(metric, PictureMetric):
        kind = type(metric).__name__
        raise UserError(f"METRIC of module {module!r} is a {kind}; it has to be a PictureMetric")
    if metric in METRICS:
        return metric
    if metric.name in known():
        raise UserError(
            f"module {module!r} names its metric {metric.name!r}, as another metric is named; "
            "give it a name of its own"
        )
    METRICS.append(metric)
    return metric


def known() -> tuple[str, ...]:
    """The metrics' names, in the order of the tables."""
    return tuple(metric.name for metric in METRICS)


def wanted(score: Score, has_baseline: bool) -> tuple[PictureMetric, ...]:
    """The metrics that a run measures.

    Those that compare with the baseline need a baseline, those with weights their key under
    ``score.weights``.
    """
    return tuple(
        metric
        for metric in METRICS
        if (has_baseline or not metric.needs_baseline)
        and (metric.weights is None or metric.weights in score.weights)
    )


def reference_of(score: Score, extractor: str) -> str | None:
    """The reference of one of a config's extractors: ``{extractor}`` stands for its name."""
    return None if score.reference is None else with_extractor_name(score.reference, extractor)


def is_pattern(where: str) -> bool:
    """True if the last part of a path or URI stands for several files (``*``, ``[`` or ``?``).

    A URI's ``?`` begins its options; a file of that very name is no pattern.
    """
    if "://" in where:
        name = where.partition("?")[0].rpartition("/")[2]
        return "*" in name or "[" in name
    return glob.has_magic(Path(where).name) and not Path(where).exists()


def with_extractor_name(where: str, extractor: str) -> str:
    """A path or URI with the extractor's name in place of ``{extractor}``."""
    return where.replace("{extractor}", layout.spelled(extractor))


def weights_of(score: Score, extractor: str) -> str | None:
    """The weights' file of one of a config's extractors; None: where it keeps them."""
    return weights_of_extractors(score)[extractor]


def check(score: Score) -> None:
    """Finds what scoring would miss, before anything is rendered; loads no network.

    Raises UserError for an unknown extractor, an unknown key of ``score.weights``, and a file that
    does not exist. Weights that a URI or a hub id names are not looked up.
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
    """Raises UserError where an extractor's reference is not there."""
    where = reference_of(score, extractor)
    if where is None or where == "drawn":
        return
    if (how := source_of(str(score.reference))) is not None and not Path(where).exists():
        raise UserError(f"score.reference: {where} is not here: {how}")
    hint = (
        "make it with tgate-batch reference, give a folder of images, or leave it out for a run "
        "without distances"
    )
    _check_reference(where, hint)


def _check_weights(score: Score, key: str, where: str) -> None:
    users = {metric.weights: metric for metric in METRICS if metric.weights is not None}
    if key == EXTRACTOR or key in score.extractor:
        hint = "give the extractor's weights, or leave it out for where it keeps them"
        _check_exists(f"weights.{key}", where, hint)
    elif key not in users:
        keys = ", ".join((*users, EXTRACTOR, *score.extractor))
        raise UserError(f"score.weights: unknown key {key!r}; one of: {keys}")
    elif not users[key].may_be_hub_id:
        hint = f"give {users[key].weights_are}, or leave it out"
        _check_exists(f"weights.{key}", where, hint)


def check_weights(score: Score, has_baseline: bool) -> None:
    """Loads every extractor and every metric with weights that a run wants, on the CPU, once.

    A hub id that is not on this machine is asked for at the hub, and not fetched. Raises UserError
    with all that cannot be used.
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
    """Extractor -> where its weights are, in the config's order; None: where it keeps them.

    They stand under the extractor's name; the first one's also under ``extractor``.
    """
    found = {name: score.weights.get(name) for name in score.extractor}
    first = score.extractor[0]
    found[first] = found[first] or score.weights.get(EXTRACTOR)
    return found


def _check_exists(key: str, where: str, hint: str) -> None:
    if "://" not in where and not Path(where).expanduser().exists():
        raise UserError(f"score.{key}: {where} does not exist; {hint}")


def _check_reference(where: str, hint: str) -> None:
    if is_pattern(where):
        return None
    if "://" not in where:
        return _check_exists("reference", where, hint)
    try:
        folder, name = Folder.of_file(where)
        found = folder.without_retries.has_entry(name)
    except (StorageError, UserError) as error:
        raise UserError(f"score.reference: {error}") from None
    if not found:
        shown = without_credentials(where)
        raise UserError(f"score.reference: {shown} does not exist; {hint}")


@dataclass(frozen=True)
class LoadedMetrics:
    """What measures a run's images; ``problems`` says why some of it cannot, a line each.

    ``weights``: measurement -> where its weights were read, and their sha256.
    """

    extractors: tuple[Extractor, ...]
    measures: tuple[tuple[PictureMetric, Measure], ...]
    problems: tuple[str, ...]
    weights: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def promised(self, weights: Mapping[str, str | None]) -> "LoadedMetrics":
        """Without what has other weights than these, measurement -> sha256; each is a problem."""
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
    """The measurement that holds an extractor's features; no metric can have such a name."""
    return f"features of {extractor}"


def load_metrics(score: Score, has_baseline: bool, device: str) -> LoadedMetrics:
    """Loads the extractors (where there is a reference) and the metrics that a run wants.

    What cannot be loaded is a problem; the others are loaded all the same.
    """
    problems: list[str] = []

    def loaded(load: Callable[..., Loaded], *arguments: str | None) -> Loaded | None:
        try:
            return load(*arguments, device)
        except UserError as error:
            problems.append(str(error))
            return None

    weights: dict[str, tuple[str, str]] = {}
    extractors = []
    if score.reference is not None:
        for name, where in weights_of_extractors(score).items():
            extractor = loaded(load_extractor, name, where)
            if extractor is not None:
                extractors.append(extractor)
                weights[features_of(extractor.name)] = (where or "its own place", extractor.sha256)
    measures = []
    for metric in wanted(score, has_baseline):
        where = None if metric.weights is None else score.weights[metric.weights]
        measure = loaded(metric.load, where)
        if measure is not None:
            measures.append((metric, measure))
            if where is not None:
                weights[metric.name] = (where, metric.fingerprint(where))
    return LoadedMetrics(tuple(extractors), tuple(measures), tuple(problems), weights)


for _module in MODULES:
    register(_module)
