"""The report's tables and notes, from the content of report.json, for Markdown and the page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tgate_batch.metrics.base import ArmFigures
from tgate_batch.metrics.precision_recall import NEIGHBOURS
from tgate_batch.report import result_table
from tgate_batch.report.columns import columns

_NAMED = ("model", "arm")  # columns that every table has
_NAMES = len(_NAMED)
_BY_CHANCE = 0.05  # of the changes where there is none
_WITHHELD = {  # what is withheld, where it is no column of its own
    "distance_corrected": "bias-corrected distance",
    "distance_change": "change of the distance",
    "intervals": "intervals of means over images",
    "change": "intervals of changes",
    "images_per_second_interval": "interval of images/s",
    "speedup_interval": "interval of the speed-up",
}
INTERVAL = "[95% CI]"
_HOW_SURE = "In brackets: the 95% interval, between which bounds the true figure is likely to lie."


class ReportTable(NamedTuple):
    """One table: its heading row and the others, which of those are a baseline's, and a note.

    The first ``labels`` columns name a row. ``explanations``: of headings, where there is one.
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
    found = [
        _part("Speed and cost", arms, "speed"),
        _part("Quality, image by image", arms, "pictures"),
        *_broken_down(arms, summary["run"]["config"]["score"].get("by")),
        _part("Quality, against the reference set", arms, "sets"),
        *(
            _part(f"Quality, against the reference set, by {extractor}", held, "sets")
            for extractor, held in _further(arms).items()
        ),
    ]
    return [part for part in found if len(part.rows[0]) > _NAMES]


def _part(title: str, arms: Sequence[ArmFigures], name: result_table.TableName) -> ReportTable:
    count = result_table.comparisons(arms, name)
    note = (
        f"This table makes {count} comparison{'s' if count > 1 else ''}: expect "
        f"{_BY_CHANCE * count:.2g} intervals that exclude 0 by chance, where nothing changed."
        if count
        else None
    )
    baselines = [bool(arm.get("is_baseline")) for arm in arms]
    return ReportTable(title, result_table.rows(arms, name), baselines, note, _explanations(arms))


def _explanations(arms: Sequence[ArmFigures]) -> dict[str, str]:
    """Heading -> what it means, and how its interval is read."""
    found = {}
    for column in columns(arms):
        if column.explanation:
            found[column.heading] = column.explanation
            found[f"{column.heading} {INTERVAL}"] = f"{column.explanation} {_HOW_SURE}"
    return found


def _further(arms: Sequence[ArmFigures]) -> dict[str, list[ArmFigures]]:
    """Extractor -> arms, with its figures in the place of the first one's."""
    found: dict[str, list[ArmFigures]] = {}
    for arm in arms:
        for extractor, figures in (arm.get("distances") or {}).items():
            official = (figures.get("distance_label") or "").startswith("FID-")
            found.setdefault(extractor, []).append(
                {key: arm.get(key) for key in ("model", "arm", "is_baseline")}
                | figures
                | {"fid" if official else "fd": figures.get("distance")}
            )
    return found


def _broken_down(arms: Sequence[ArmFigures], column: str | None) -> Iterator[ReportTable]:
    """Figures of single images by the values of a column of the prompt set, arm beside arm."""
    values = list(dict.fromkeys(value for arm in arms for value in arm.get("by") or {}))
    held = [
        (value, arm, arm["by"][value])
        for value in values
        for arm in arms
        if value in (arm.get("by") or {})
    ]
    if not held:
        return
    views = [
        {key: arm.get(key) for key in ("model", "arm", "is_baseline")}
        | figures
        | {"paired": figures}
        for _, arm, figures in held
    ]
    part = _part(f"Quality, image by image, by {column or 'value'}", views, "pictures")
    if len(part.rows[0]) <= _NAMES:
        return
    head, *body = part.rows
    rows = [[column or "value", *head[:_NAMES], "prompts", *head[_NAMES:]]]
    for line, (value, _, figures) in zip(body, held, strict=True):
        rows.append([str(value), *line[:_NAMES], str(figures["prompts"]), *line[_NAMES:]])
    told = {column or "value": "What the prompts of the row have in common."}
    told["prompts"] = "How many prompts the row is of."
    yield part._replace(rows=rows, labels=_NAMES + 1, explanations={**part.explanations, **told})


def notes(arms: Sequence[ArmFigures]) -> list[str]:
    """Returns the notes that explain the figures."""
    every = [*arms, *(arm for held in _further(arms).values() for arm in held)]
    found = [
        "MACs per image: the multiplications (each with its addition) of the denoiser, the network "
        "that is called at every step. Papers count linear layers and convolutions alone; with "
        "attention included its products count too.",
        "images/s per worker: measured over denoising and decoding. Each worker's first batch of "
        "an arm is left out: it also warms the machine up.",
        *_of_distances(every),
    ]
    if any(column.bounds(arm) is not None for column in columns(arms) for arm in every):
        found.append(
            "[95% CI]: an interval made this way holds the true figure in 19 of 20 runs, each with "
            "other prompts of the same kind. It is computed by leaving out one of 20 groups of "
            "prompts after the other (delete-a-group jackknife; for images/s and speed-up, groups "
            "of batches); for a change of a yes/no figure after Bonett and Price (2012), widened "
            "where the groups vary more. Changes are over the prompts that both arms delivered "
            "unbroken."
        )
    return [*found, *withheld(every)]


def _of_distances(arms: Sequence[ArmFigures]) -> Iterator[str]:
    """Labels and notes of the distances, the sizes of the sets, and what is left out."""
    said: dict[str, list[str]] = {}
    for arm in arms:
        if arm.get("distance_note"):
            note = f"{arm['distance_label']}: {arm['distance_note']}."
            said.setdefault(note, []).append(_name(arm))
    several = len({arm.get("distance_label") for arm in arms if arm.get("distance_label")}) > 1
    for note, names in said.items():
        yield f"{note} ({', '.join(names)})" if several else note
    references = {
        arm["reference"]["sha256"]: arm["reference"] for arm in arms if arm.get("reference")
    }
    for reference in references.values():
        count = reference.get("count")
        size = f"{count:,} images, " if count else ""
        yield (
            f"Reference set: {reference['name']}, {size}sha256 {reference['sha256'][:16]}…. It is "
            "taken as it is: its own noise is left out of every interval."
        )
    samples = dict.fromkeys(
        (arm["kid"]["pictures"], (arm.get("reference") or {}).get("sample"))
        for arm in arms
        if (arm.get("kid") or {}).get("pictures")
    )
    for pictures, reference_pictures in samples:
        other = f" and {reference_pictures:,} of the reference" if reference_pictures else ""
        yield f"Kernel distance, precision and recall: of {pictures:,} images of the arm{other}."
    if any(arm.get("precision") is not None for arm in arms):
        yield (
            "Precision and recall: an image looks like another where it is nearer to it than that "
            f"one's {NEIGHBOURS} nearest neighbours of its own set (k = {NEIGHBOURS})."
        )
    if any(arm.get("distance_label") for arm in arms):
        yield (
            "A distance between sets can miss damage that a person sees: read it beside the "
            "paired figures (PSNR, SSIM against the baseline's same-seed image) and the "
            "per-prompt ones."
        )


def withheld(
    arms: Sequence[ArmFigures], figures_of: result_table.TableName | None = None
) -> Iterator[str]:
    """Each reason for figures that are not shown, once: of what and of which arms.

    ``figures_of``: a table, of whose columns alone the reasons are.
    """
    shown = {column.name for column in columns(arms) if figures_of in column.tables}
    words = {column.name: column.heading for column in columns(arms)} | _WITHHELD
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for arm in arms:
        for key, reason in (arm.get("withheld") or {}).items():
            if figures_of is not None and key not in shown:
                continue
            figures, names = reasons.setdefault(reason, ({}, {}))
            figures[words.get(key, key)] = names[_name(arm)] = None
    for reason, (figures, names) in reasons.items():
        yield f"Not shown: {', '.join(figures)} ({', '.join(names)}): {reason}."


def _name(arm: ArmFigures) -> str:
    return f"{arm['model']} {arm['arm']}"


def cost_notes(summary: dict[str, Any]) -> Iterator[str]:
    """What costs and energy are of, if there are any."""
    bill = summary["run"]["bill"]
    count = bill["invocations"]
    if bill["usd"] is not None:
        yield (
            f"$ per 1,000 images: billed is all that was held ({bill['device_hours']:.3f} "
            f"{bill['devices']} hours, ${bill['usd']:.4f}: the wall clock of {count} "
            f"invocation{'s' if count > 1 else ''}, each times the most workers it held at one "
            "time), shared among arms by their time on the device, over the images that are not "
            "broken; "
            "marginal is denoising and decoding alone."
        )
    if any(arm["wh_per_1000_images"] is not None for arm in summary["arms"]):
        yield "Wh per 1,000 images: what the GPUs took from loading to the last file, shared alike."
