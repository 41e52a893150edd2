"""The figures of a checkout's documents, written anew from the records under docs/benchmarks/.

A document holds ``<!-- table: NAME -->``, what was written last, and ``<!-- end -->``. ``TABLES``
has the function of each name: from records, by their files' names, to text.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import gpu_table
from tgate_batch.errors import UserError
from tgate_batch.execute.progress import duration
from tgate_batch.report import result_table
from tgate_batch.report.columns import columns

Records = Mapping[str, dict[str, Any]]

_ROOT = Path(__file__).parents[1]
_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->)(\n?).*?(<!-- end -->)", re.DOTALL)


def written(root: Path = _ROOT) -> dict[Path, str]:
    """Every document of a checkout that has a marked part -> its text with each of them anew.

    Raises UserError where ``root`` is no checkout, and for a name that no table has.
    """
    folder = root / "docs" / "benchmarks"
    if not folder.is_dir():
        raise UserError(f"bench tables: {root} has no docs/benchmarks; run it in a checkout")
    records = {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.json"))
    }
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    return {page: anew(text, records) for page, text in texts.items() if _MARKED.search(text)}


def anew(text: str, records: Records) -> str:
    """A document with every marked part written from the records; raises UserError as above."""

    def part(found: re.Match) -> str:
        start, name, line_break, end = found.groups()
        if name not in TABLES:
            raise UserError(f"bench tables: no table {name!r}; one of: {', '.join(TABLES)}")
        return f"{start}{line_break}{TABLES[name](records)}{line_break}{end}"

    return _MARKED.sub(part, text)


_DEMO = (  # columns of the report -> whether without the interval that it may have
    ("images_per_second_per_worker", True),
    ("speedup", False),
    ("macs_per_image_with_attention", True),
    ("macs_saved", True),
    ("psnr", True),
    ("prompt_accuracy", True),
    ("prompt_accuracy_change", True),  # a change keeps it
    ("kid_change", True),
    ("usd_per_1000_images_billed", True),
)


def _demo(records: Records) -> str:
    """The report of the embedded model: a row an arm, then what the run was."""
    record = records["demo"]
    results, arms = record["results"], record["results"]["arms"]
    named = {column.name: column for column in columns(arms)}
    shown = [(named[name], brief) for name, brief in _DEMO]
    heads = ["arm", "plan", *(result_table.heading(column, arms, brief) for column, brief in shown)]
    rows = [
        [arm["arm"], _plan(arm["plan"]), *(column.show(arm, brief) for column, brief in shown)]
        for arm in arms
    ]
    distances = ", ".join(f"{arm['fd']:.1f}" for arm in arms)
    errors = sum(arm["errors"] for arm in arms)
    return "\n".join(
        [
            result_table.markdown([heads, *rows]),
            "",
            f"({sum(arm['images'] for arm in arms)} images, {errors or 'no'} errors, "
            f"{results['steps']} steps, {duration(results['seconds'])} on "
            f"{record['hardware']['cores']} CPU cores, set-up included, at "
            f"${results['usd_per_cpu_hour']:.2f} a core hour; {record['date']}, "
            f"`{_command(record)}`. The Frechet distances {distances} are not compared: too few "
            "images for 1,280 dimensions.)",
        ]
    )


def _plan(plan: Mapping[str, int] | None) -> str:
    if plan is None:
        return "every step in full"
    return f"gate {plan['gate_step']}, self-attention every {plan['sp_interval']}"


def _costs(records: Records) -> str:
    """What the job and its parts cost: a figure, the command that gives it, and the day."""
    rows = [["what", "figure", "command", "measured"]]
    for name, lines in _COSTS.items():
        record = records[name]
        for what, figure in lines:
            rows.append([what, figure(record["results"]), f"`{_command(record)}`", record["date"]])
    return result_table.markdown(rows)


def _medians(*paths: str) -> Callable[[Any], str]:
    """Medians of ratios at dotted places of the results, side by side."""

    def figure(results: Any) -> str:
        return ", ".join(f"{_at(results, f'{path}.median'):.2f}" for path in paths)

    return figure


def _at(results: Any, path: str) -> Any:
    for key in path.split("."):
        results = results[key]
    return results


def _command(record: Mapping[str, Any]) -> str:
    """As one types it, without the place of the record."""
    words = re.sub(r" --output \S+", "", record["command"])
    return words.replace("python jobs/bench.py", "tgate-batch bench")


# The file of a record -> what each line of the table says of its results.
_Lines = tuple[tuple[str, Callable[[Any], str]], ...]
_GATED = ("sd15", "sdxl", "pixart_alpha", "demo")
_COSTS: dict[str, _Lines] = {
    "gate": (
        (
            "a gated call's speed over the reference's (tgate 1.0.0), one thread: tiny models of "
            "SD, SDXL, PixArt; embedded model",
            _medians(*(f"{name}.speedup.reference" for name in _GATED)),
        ),
        (
            "the same over a plain call's",
            _medians(*(f"{name}.speedup.plain" for name in _GATED)),
        ),
    ),
    "engine": (
        (
            "convolutions channels first over channels last (the default), embedded model: plain, "
            "gated",
            _medians("plain.channels first", "gated.channels first"),
        ),
    ),
    "padding": (
        (
            "1, 2, 4, 8 and 12 images in padded batches of 8: time with padding over time without, "
            "embedded model, plain",
            _medians(*(f"plain.{count}" for count in (1, 2, 4, 8, 12))),
        ),
        ("the same, gated", _medians(*(f"gated.{count}" for count in (1, 2, 4, 8, 12)))),
    ),
    "rows": (
        (
            "2,000 rows of 8 kinds in one file over a uniform file for each kind, embedded model: "
            "images/s; images per CPU second; rows rendered per row requested",
            lambda found: (
                f"{found['images_per_second_over_uniform']:.2f}; "
                f"{found['images_per_cpu_second_over_uniform']:.2f}; "
                f"{_at(found, 'rows_drawn_a_row.mixed'):.2f}"
            ),
        ),
    ),
    "encode": (
        (
            "lossless WebP (the default) over PNG, one thread: speed; size",
            lambda found: (
                f"{_at(found, 'webp x1.speedup.median'):.2f}; {_at(found, 'webp x1.size'):.2f}"
            ),
        ),
    ),
    "statistics": (
        (
            "Frechet distance from statistics, 2,048 dimensions: times as fast as pytorch-fid",
            lambda found: f"{found['distance_speedup']:.1f}",
        ),
        (
            "images to a distance, Inception: times as fast as `python -m pytorch_fid`",
            lambda found: f"{found['whole_speedup']:.2f}",
        ),
    ),
    "scale_scoring": (
        (
            "every score and interval of 1,000,000 rows x 2 arms, 1,280 dimensions, fabricated, 2 "
            "workers; the driver's memory above an empty run's",
            lambda found: (
                f"{found['workers_2']['seconds'] / 60:.1f} min; "
                f"{found['driver_mib_above_empty']:.0f} MiB"
            ),
        ),
    ),
    "scale_pool": (
        (
            "time to find the missing one of 100,000 shards: on a disk; on a store that "
            "takes 30 ms a request",
            lambda found: (
                f"{found['resume_on_a_disk']['seconds']:.1f} s; "
                f"{found['resume_on_the_store']['seconds']:.1f} s"
            ),
        ),
        (
            "time from 10 million prompts to the first task, on that store; the driver's memory",
            lambda found: (
                f"{found['fresh_on_the_store']['seconds']:.0f} s; "
                f"{found['fresh_on_the_store']['peak_mib']:.0f} MiB"
            ),
        ),
    ),
    "scale_report": (
        (
            "the report of 10,000 prompts and 4 arms, 512-pixel images; size of the page",
            lambda found: f"{found['seconds']:.1f} s; {found['page_bytes'] / 1e6:.1f} MB",
        ),
    ),
}


def _coverage(records: Records) -> str:
    """What simulated intervals cover, as part of a sentence."""
    results = records["coverage"]["results"]
    covers = [cell["covers"] for cell in results["cells"].values() if "covers" in cell]
    return (
        f"in {len(covers)} cells of {results['runs']} runs, {min(covers):.1%} at least, "
        f"{sum(covers) / len(covers):.1%} in the mean"
    )


def _tail(records: Records) -> str:
    """How long simulated runs take over the ideal, as part of a sentence."""
    over = records["scale_pool"]["results"]["tail_over_ideal"]
    return (
        f"{over['256 workers']:.2f} times the ideal on 256 workers and "
        f"{over['100 of mixed speed']:.2f} on 100 of mixed speed"
    )


def _plan_search(records: Records) -> str:
    """Simulated plan searches, a row for each population."""
    record = records["plan_search"]
    head = [
        "population", "promise kept", "recommends a plan", "saving", "oracle", "images of all",
        "estimate's error", "kept by the mean", "saving by the mean",
    ]  # fmt: skip
    body = [
        [
            name,
            f"{cell['kept']:.1%}",
            f"{cell['recommends']:.0%}",
            f"{cell['saving']:.1%}",
            f"{cell['oracle_saving']:.1%}",
            f"{cell['images_of_exhaustive']:.1%}",
            "–" if cell["estimate_error"] is None else f"{cell['estimate_error']:+.4f}",
            f"{cell['kept_by_mean']:.1%}",
            f"{cell['saving_by_mean']:.1%}",
        ]
        for name, cell in record["results"]["cells"].items()
    ]
    table = result_table.markdown([head, *body])
    runs = record["results"]["runs"]
    return f"{table}\n\n{runs} searches in each row, `{_command(record)}`."


def _gpu(records: Records) -> str:
    """Full-size models on a GPU, as far as they were measured."""
    record = records.get("gpu")
    if record is None:
        return "Not measured yet: no GPU was available."
    return f"{gpu_table(record['results'])}\n\nMeasured {record['date']}, `{_command(record)}`."


TABLES: dict[str, Callable[[Records], str]] = {
    "demo": _demo,
    "costs": _costs,
    "gpu": _gpu,
    "coverage": _coverage,
    "plan-search": _plan_search,
    "tail": _tail,
}
