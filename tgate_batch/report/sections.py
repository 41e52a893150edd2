"""The report's sections for Markdown and the page: tables with titles and notes."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from tgate_batch.metrics.precision_recall import NEIGHBOURS
from tgate_batch.report import result_table
from tgate_batch.report.columns import ArmFigures, Table, columns
from tgate_batch.report.result_table import INTERVAL

_NAMES = 2  # the first columns of every table: model and arm
_BY_CHANCE = 0.05  # share of intervals that exclude 0 although nothing changed
_WITHHELD = {  # names of withheld figures that are not columns
    "distance_corrected": "bias-corrected distance",
    "distance_change": "change of the distance",
    "intervals": "intervals of means over images",
    "change": "intervals of changes",
    "images_per_second_interval": "interval of images/s",
    "speedup_interval": "interval of the speed-up",
}
_HOW_SURE = "In brackets: the 95% interval, which probably contains the true figure."


class ReportTable(NamedTuple):
    """One table: its heading row and the other rows, a flag for each baseline's row, and a note.

    The first ``labels`` columns name a row. ``explanations``: heading -> its meaning.
    """

    title: str
    rows: list[list[str]]
    baselines: list[bool]
    note: str | None
    explanations: Mapping[str, str]
    labels: int = _NAMES


def report_tables(summary: dict[str, Any]) -> list[ReportTable]:
    """Returns the report's tables, without empty ones."""
    arms = summary["arms"]
    tables = [
        _table("Speed and cost", arms, "speed"),
        _table("Quality, image by image", arms, "images"),
        *_broken_down(arms, summary["run"]["config"]["score"].get("by")),
        _table("Quality, against the reference set", arms, "sets"),
        *(
            _table(f"Quality, against the reference set, by {extractor}", others, "sets")
            for extractor, others in _other_extractors(arms).items()
        ),
    ]
    return [table for table in tables if len(table.rows[0]) > _NAMES]


def _table(title: str, arms: Sequence[ArmFigures], name: Table) -> ReportTable:
    count = result_table.comparisons(arms, name)
    note = (
        f"This table makes {count} comparison{'s' if count > 1 else ''}: expect "
        f"{_BY_CHANCE * count:.2g} intervals that exclude 0 by chance, although nothing changed."
        if count
        else None
    )
    baselines = [bool(arm.get("is_baseline")) for arm in arms]
    return ReportTable(title, result_table.rows(arms, name), baselines, note, _explanations(arms))


def _explanations(arms: Sequence[ArmFigures]) -> dict[str, str]:
    """Heading -> its meaning, with and without the mark of intervals."""
    meanings = {}
    for column in columns(arms):
        if column.explanation:
            meanings[column.heading] = column.explanation
            meanings[f"{column.heading} {INTERVAL}"] = f"{column.explanation} {_HOW_SURE}"
    return meanings


def _other_extractors(arms: Sequence[ArmFigures]) -> dict[str, list[ArmFigures]]:
    """Each extractor but the first -> the arms, with its figures instead of the first one's."""
    by_extractor: dict[str, list[ArmFigures]] = {}
    for arm in arms:
        for extractor, figures in (arm.get("distances") or {}).items():
            official = (figures.get("distance_label") or "").startswith("FID-")
            key = "fid" if official else "fd"
            view = _names_of(arm) | figures | {key: figures.get("distance")}
            by_extractor.setdefault(extractor, []).append(view)
    return by_extractor


def _names_of(arm: ArmFigures) -> dict[str, Any]:
    return {key: arm.get(key) for key in ("model", "arm", "is_baseline")}


def _broken_down(arms: Sequence[ArmFigures], column: str | None) -> Iterator[ReportTable]:
    """The table of per-image figures by the values of a column of the prompt set, if any."""
    column = column or "value"
    values = dict.fromkeys(value for arm in arms for value in arm.get("by") or {})
    cells = [
        (value, arm, arm["by"][value])
        for value in values
        for arm in arms
        if value in (arm.get("by") or {})
    ]
    if not cells:
        return
    views = [_names_of(arm) | figures | {"paired": figures} for _, arm, figures in cells]
    table = _table(f"Quality, image by image, by {column}", views, "images")
    if len(table.rows[0]) <= _NAMES:
        return
    head, *body = table.rows
    rows = [[column, *head[:_NAMES], "prompts", *head[_NAMES:]]]
    for line, (value, _, figures) in zip(body, cells, strict=True):
        rows.append([str(value), *line[:_NAMES], str(figures["prompts"]), *line[_NAMES:]])
    explanations = {
        **table.explanations,
        column: "The value that the prompts of the row have in common.",
        "prompts": "The number of prompts of the row.",
    }
    yield table._replace(rows=rows, labels=_NAMES + 1, explanations=explanations)


def notes(arms: Sequence[ArmFigures]) -> list[str]:
    """Returns the notes that explain the figures."""
    every = [*arms, *chain.from_iterable(_other_extractors(arms).values())]
    lines = [
        "MACs per image: the multiply-accumulate operations of the denoiser, the network that is "
        "called at every step. Papers count linear layers and convolutions alone; with attention "
        "included, its products count too.",
        "images/s per worker: measured over denoising and decoding. Each worker's first batch of "
        "an arm is a warm-up and is not counted.",
        *_of_distances(every),
    ]
    if any(column.bounds(arm) is not None for column in columns(arms) for arm in every):
        lines.append(
            f"{INTERVAL}: the interval contains the true figure in 19 of 20 runs with other "
            "prompts of the same kind. It is a delete-a-group jackknife over 20 groups of prompts "
            "(for images/s and speed-up: of batches); for the change of a yes/no figure it is the "
            "interval of Bonett and Price (2012), widened if the groups vary more. Changes are "
            "over the prompts with an unbroken image in both arms."
        )
    return [*lines, *withheld(every)]


def _of_distances(arms: Sequence[ArmFigures]) -> Iterator[str]:
    """Notes on the labels of distances, and on the sizes of the sets."""
    names_by_note: dict[str, list[str]] = {}
    for arm in arms:
        if arm.get("distance_note"):
            note = f"{arm['distance_label']}: {arm['distance_note']}."
            names_by_note.setdefault(note, []).append(_name(arm))
    several = len({arm.get("distance_label") for arm in arms if arm.get("distance_label")}) > 1
    for note, names in names_by_note.items():
        yield f"{note} ({', '.join(names)})" if several else note
    references = {
        arm["reference"]["sha256"]: arm["reference"] for arm in arms if arm.get("reference")
    }
    for reference in references.values():
        count = reference.get("count")
        size = f"{count:,} images, " if count else ""
        yield (
            f"Reference set: {reference['name']}, {size}sha256 {reference['sha256'][:16]}…. No "
            "interval includes its sampling noise."
        )
    samples = dict.fromkeys(
        (arm["kid"]["pictures"], (arm.get("reference") or {}).get("sample"))
        for arm in arms
        if (arm.get("kid") or {}).get("pictures")
    )
    for images, reference_images in samples:
        other = f" and {reference_images:,} of the reference" if reference_images else ""
        yield f"Kernel distance, precision and recall: of {images:,} images of the arm{other}."
    if any(arm.get("precision") is not None for arm in arms):
        yield (
            "Precision and recall: an image resembles another if it is nearer to it than the "
            f"other's {NEIGHBOURS} nearest neighbours in its set (k = {NEIGHBOURS})."
        )
    if any(arm.get("distance_label") for arm in arms):
        yield (
            "A distance between sets can miss damage that a person sees: read it together with the "
            "paired figures (PSNR, SSIM against the baseline's same-seed image) and the "
            "per-prompt ones."
        )


def withheld(arms: Sequence[ArmFigures], figures_of: Table | None = None) -> Iterator[str]:
    """Yields each reason for figures that are left out, with the figures and the arms.

    ``figures_of``: only figures of this table; None: all.
    """
    shown = {column.name for column in columns(arms) if figures_of in column.tables}
    headings = {column.name: column.heading for column in columns(arms)} | _WITHHELD
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for arm in arms:
        for key, reason in (arm.get("withheld") or {}).items():
            if figures_of is not None and key not in shown:
                continue
            figures, names = reasons.setdefault(reason, ({}, {}))
            figures[headings.get(key, key)] = names[_name(arm)] = None
    for reason, (figures, names) in reasons.items():
        yield f"Not shown: {', '.join(figures)} ({', '.join(names)}): {reason}."


def _name(arm: ArmFigures) -> str:
    return f"{arm['model']} {arm['arm']}"


def cost_notes(summary: dict[str, Any]) -> Iterator[str]:
    """Yields notes on cost and energy, if they are known."""
    bill = summary["run"]["bill"]
    count = bill["invocations"]
    if bill["usd"] is not None:
        yield (
            "$ per 1,000 images: billed is everything that was reserved "
            f"({bill['device_hours']:.3f} {bill['devices']} hours, ${bill['usd']:.4f}: the "
            f"wall-clock time of {count} invocation{'s' if count > 1 else ''}, times the largest "
            "number of workers of each), divided among the arms by their device time, over the "
            "images that are not broken; marginal is denoising and decoding alone."
        )
    if any(arm["wh_per_1000_images"] is not None for arm in summary["arms"]):
        yield (
            "Wh per 1,000 images: energy of the GPUs from loading to the last file, divided alike."
        )
