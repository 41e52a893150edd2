"""Which measurements a run wants, where their files are, and which of them are missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.metrics.base import PictureMetric
from tgate_batch.metrics.features import Extractor, load_extractor
from tgate_batch.output import layout
from tgate_batch.output.layout import Settings
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Finished, Run, finished
from tgate_batch.score.measure import ArmOrder, MeasureOrder
from tgate_batch.score.registry import features_of, wanted, weights_of_extractors
from tgate_batch.storage import Folder


@dataclass(frozen=True)
class MeasurementPlan:
    """What a run measures of every picture.

    ``metrics`` with the sha256 of their weights. ``problems``: why some cannot be measured.
    ``missing``: the same, by figure.
    """

    extractors: Mapping[str, Extractor]  # by their names in the config
    metrics: tuple[tuple[PictureMetric, str | None], ...]
    problems: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, device: str = "cpu") -> "MeasurementPlan":
        """Reads the config and hashes weights. What cannot be had is a problem, not the end."""
        score = run.config.score
        extractors, metrics, missing = {}, [], {}
        if score.reference is not None:
            for name, where in weights_of_extractors(score).items():
                try:
                    extractors[name] = load_extractor(name, where, device)
                except UserError as error:
                    missing[distance_of(name)] = str(error)
        for metric in wanted(score, run.config.baseline is not None):
            path = score.weights[metric.weights] if metric.weights else None
            try:
                metrics.append((metric, None if path is None else metric.fingerprint(path)))
            except UserError as error:
                missing[metric.name] = str(error)
        return cls(extractors, tuple(metrics), tuple(dict.fromkeys(missing.values())), missing)

    def of_figures(self, figures: Sequence[PictureMetric]) -> "MeasurementPlan":
        """Returns the plan with these metrics alone, and with the problems of theirs."""
        names = {metric.name for metric in figures}
        missing = {name: why for name, why in self.missing.items() if name in names}
        metrics = tuple(pair for pair in self.metrics if pair[0].name in names)
        return MeasurementPlan({}, metrics, tuple(dict.fromkeys(missing.values())), missing)

    @property
    def weights(self) -> dict[str, str | None]:
        """Measurement -> the sha256 of its weights."""
        found = {features_of(each.name): each.sha256 for each in self.extractors.values()}
        return found | {metric.name: sha256 for metric, sha256 in self.metrics}

    def of_arm(self, run: Run, model: str, arm: str) -> dict[str, tuple[str, Settings]]:
        """Measurement -> its folder, and what decides its content: all that this arm is to have."""
        pictures = run.provenance_of(model, arm)
        found = {layout.ROWS: (layout.measured(layout.ROWS, model, arm), layout.of_rows(pictures))}
        for extractor in self.extractors.values():
            version = getattr(extractor, "version", 1)
            found[features_of(extractor.name)] = (
                layout.features(extractor.name, model, arm),
                layout.of_features(pictures, extractor.name, version, extractor.sha256),
            )
        for metric, weights in self.metrics:
            baseline = None
            if metric.needs_baseline:
                name = run.config.baseline
                if name in (None, arm) or layout.images(model, str(name)) not in run.ledger:
                    continue
                baseline = run.provenance_of(model, str(name))
            found[metric.name] = (
                layout.measured(metric.name, model, arm),
                layout.of_measurement(pictures, metric.version, weights, baseline),
            )
        return found


def distance_of(extractor: str) -> str:
    """The key under ``withheld`` of an extractor's distances that could not be measured at all."""
    return f"distances by {extractor}"


def orders(
    run: Run, measurements: MeasurementPlan, rendered: Finished
) -> Iterator[tuple[Model, MeasureOrder]]:
    """What is missing, a shard of a model at a time. Enters its folders into the ledger first.

    A folder that holds measurements of another kind is cleared: they are redone, unlike pictures.
    """
    for model in run.config.models:
        arms = {
            arm: measurements.of_arm(run, model.name, arm)
            for arm in run.config.arms
            if rendered[model.name, arm]
        }
        for folders in arms.values():
            _enter(run, folders)
        present = _present(run.folder, arms)
        for shard in run.shards:
            if order := _order(run, measurements, model.name, shard, arms, rendered, present):
                yield model, order


def expected_measurements(run: Run, names: Sequence[str]) -> list[str]:
    """Those of some measurements that are to be there: a listing has them, or their images.

    A measurement that could not be made is a problem of its own.
    """
    if not names:
        return []
    rendered = finished(run)
    listed = {*run.folder.names(layout.MEASURED), *run.folder.names(layout.FEATURES)}
    found = []
    for name in names:
        role = layout.role_of(name)
        rows = role is not None and role.of == layout.ROWS
        pair = (str(role.model), str(role.arm)) if role is not None else ("", "")
        there = role is not None and role.number in rendered.get(pair, ())
        if name in listed or (rows and there):
            found.append(name)
    return found


def _enter(run: Run, folders: Mapping[str, tuple[str, Settings]]) -> None:
    for folder, settings in folders.values():
        if folder in run.ledger and run.ledger[folder] != settings:
            run.ledger.clear(folder)
        run.ledger.enter(folder, settings)


def _present(folder: Folder, arms: Mapping[str, Mapping[str, tuple[str, Settings]]]) -> set[str]:
    """The files of measurements that exist, by two listings."""
    return {*folder.names(layout.MEASURED), *folder.names(layout.FEATURES)} if arms else set()


def _order(
    run: Run,
    measurements: MeasurementPlan,
    model: str,
    shard: ShardPlan,
    arms: Mapping[str, Mapping[str, tuple[str, Settings]]],
    rendered: Finished,
    present: set[str],
) -> MeasureOrder | None:
    baseline = run.config.baseline
    paired = {metric.name for metric, _ in measurements.metrics if metric.needs_baseline}
    if baseline is None or shard.index not in rendered[model, baseline]:
        baseline = None
    found: dict[str, ArmOrder] = {}
    for arm, folders in arms.items():
        if shard.index not in rendered[model, arm]:
            continue
        files = {}
        for name, (folder, settings) in folders.items():
            file = layout.shard_file(folder, shard.index)
            if file not in present and not (name in paired and baseline is None):
                files[name] = (file, layout.file_identity(settings, shard.digest))
        found[arm] = ArmOrder(run.pictures(model, arm, shard), files)
    beside = any(name in paired for order in found.values() for name in order.files)
    needed = {
        arm: order for arm, order in found.items() if order.files or (beside and arm == baseline)
    }
    return MeasureOrder(shard, needed, baseline, measurements.weights) if needed else None
