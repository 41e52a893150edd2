"""Plans a run's measurements: which it needs, where their files are, and which are missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.metrics.base import ImageMetric
from tgate_batch.metrics.features import Extractor, load_extractor, version_of
from tgate_batch.output import layout
from tgate_batch.output.layout import Settings
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Finished, Run, finished
from tgate_batch.score.extractor_facts import ExtractorFacts
from tgate_batch.score.measure import ArmOrder, MeasureOrder
from tgate_batch.score.registry import features_of, wanted, weights_of_extractors

Folders = Mapping[str, tuple[str, Settings]]  # measurement -> its folder, and its settings


@dataclass(frozen=True)
class MeasurementPlan:
    """The measurements of every image of a run.

    ``metrics`` have the sha256 of their weights. ``problems`` are the reasons why some figures
    cannot be measured; ``missing`` has them by figure.
    """

    extractors: Mapping[str, Extractor]  # by their names in the config
    metrics: tuple[tuple[ImageMetric, str | None], ...]
    problems: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, device: str = "cpu") -> "MeasurementPlan":
        """Loads the extractors and hashes the weights; an error is a problem and does not stop."""
        score = run.config.score
        extractors, metrics, missing = {}, [], {}
        if score.reference is not None:
            for name, where in weights_of_extractors(score).items():
                try:
                    extractors[name] = load_extractor(name, where, device)
                except UserError as error:
                    missing[missing_distance(name)] = str(error)
        for metric in wanted(score, run.config.baseline is not None):
            path = score.weights[metric.weights] if metric.weights else None
            try:
                metrics.append((metric, None if path is None else metric.fingerprint(path)))
            except UserError as error:
                missing[metric.name] = str(error)
        return cls(extractors, tuple(metrics), tuple(dict.fromkeys(missing.values())), missing)

    def of_figures(self, figures: Sequence[ImageMetric]) -> "MeasurementPlan":
        """Returns the plan with these metrics alone, and with the problems of theirs."""
        names = {metric.name for metric in figures}
        missing = {name: why for name, why in self.missing.items() if name in names}
        metrics = tuple(pair for pair in self.metrics if pair[0].name in names)
        return MeasurementPlan({}, metrics, tuple(dict.fromkeys(missing.values())), missing)

    @property
    def facts(self) -> tuple[ExtractorFacts, ...]:
        return tuple(map(ExtractorFacts.of, self.extractors.values()))

    @property
    def weights(self) -> dict[str, str | None]:
        """Measurement -> the sha256 of its weights."""
        extractors = {features_of(each.name): each.sha256 for each in self.extractors.values()}
        return extractors | {metric.name: sha256 for metric, sha256 in self.metrics}

    def of_arm(self, run: Run, model: str, arm: str) -> dict[str, tuple[str, Settings]]:
        """Returns an arm's measurements: for each its folder and everything that decides it."""
        images = run.provenance_of(model, arm)
        folders = {layout.ROWS: (layout.measured(layout.ROWS, model, arm), layout.of_rows(images))}
        for each in self.extractors.values():
            folders[features_of(each.name)] = (
                layout.features(each.name, model, arm),
                layout.of_features(images, each.name, version_of(each), each.sha256),
            )
        for metric, weights in self.metrics:
            baseline = None
            if metric.needs_baseline:
                name = run.config.baseline
                if name in (None, arm) or layout.images(model, str(name)) not in run.ledger:
                    continue
                baseline = run.provenance_of(model, str(name))
            folders[metric.name] = (
                layout.measured(metric.name, model, arm),
                layout.of_measurement(images, metric.version, weights, baseline),
            )
        return folders


def missing_distance(extractor: str) -> str:
    """Returns the key under ``withheld`` of an extractor whose distances could not be measured."""
    return f"distances by {extractor}"


def orders(
    run: Run, measurements: MeasurementPlan, rendered: Finished
) -> Iterator[tuple[Model, MeasureOrder]]:
    """Yields orders for missing measurements, one per model and shard, after entering folders.

    A folder with measurements of other settings is cleared: they are redone, unlike images.
    """
    for model in run.config.models:
        arms = {
            arm: measurements.of_arm(run, model.name, arm)
            for arm in run.config.arms
            if rendered[model.name, arm]
        }
        for folders in arms.values():
            for folder, settings in folders.values():
                enter_folder(run, folder, settings)
        existing = _listed(run) if arms else set()
        for shard in run.shards:
            if order := _order(run, measurements, model.name, shard, arms, rendered, existing):
                yield model, order


def expected_measurements(run: Run, names: Sequence[str]) -> list[str]:
    """Returns the measurements that should exist: those listed, and the rows of existing images.

    A measurement that could not be made is reported as a problem, not here.
    """
    if not names:
        return []
    rendered, listed = finished(run), _listed(run)

    def is_expected(name: str) -> bool:
        role = layout.role_of(name)
        if name in listed or role is None or role.of != layout.ROWS:
            return name in listed
        return role.number in rendered.get((str(role.model), str(role.arm)), ())

    return [name for name in names if is_expected(name)]


def enter_folder(run: Run, folder: str, settings: Settings) -> None:
    """Enters a folder into the ledger; first clears it if it has files of other settings."""
    if folder in run.ledger and run.ledger[folder] != settings:
        run.ledger.clear(folder)
    run.ledger.enter(folder, settings)


def _listed(run: Run) -> set[str]:
    """The existing files of measurements."""
    return {*run.folder.names(layout.MEASURED), *run.folder.names(layout.FEATURES)}


def _order(
    run: Run,
    measurements: MeasurementPlan,
    model: str,
    shard: ShardPlan,
    arms: Mapping[str, Folders],
    rendered: Finished,
    existing: set[str],
) -> MeasureOrder | None:
    baseline = run.config.baseline
    paired = {metric.name for metric, _ in measurements.metrics if metric.needs_baseline}
    if baseline is None or shard.index not in rendered[model, baseline]:
        baseline = None
    arm_orders: dict[str, ArmOrder] = {}
    for arm, folders in arms.items():
        if shard.index not in rendered[model, arm]:
            continue
        files = {}
        for name, (folder, settings) in folders.items():
            file = layout.shard_file(folder, shard.index)
            if file not in existing and not (name in paired and baseline is None):
                files[name] = (file, layout.file_identity(settings, shard.digest))
        arm_orders[arm] = ArmOrder(run.pictures(model, arm, shard), files)
    compares = any(name in paired for order in arm_orders.values() for name in order.files)
    needed = {
        arm: order
        for arm, order in arm_orders.items()
        if order.files or (compares and arm == baseline)
    }
    return MeasureOrder(shard, needed, baseline, measurements.weights) if needed else None
