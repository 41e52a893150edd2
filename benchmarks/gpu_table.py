"""The GPU table as text: from the cells that were measured, those that a reader asks for first."""

from collections.abc import Mapping
from typing import Any

from tgate_batch.report import result_table

_HEADS = (
    "model",
    "transformer blocks",
    "arm",
    "images/s",
    "speed-up [lowest, highest]",
    "its limit",
    "of the limit",
    "joules an image",
    "peak GiB",
)
_HOW = {(): "as they are", ("compile regional",): "compiled"}
_NONE = "–"


def gpu_table(results: Mapping[str, Any], steps: int = 25, batch: int = 8) -> str:
    """A row an arm of each model at these steps and this batch, compiled or not; then the job."""
    rows = [list(_HEADS)]
    job = ""
    for name, measured in results["cells"].items():
        what, model, of_steps, of_batch, *how = name.split(", ")
        if "error" in measured:
            continue
        if what == "job":
            job = _job(model, of_steps, of_batch, measured)
        asked = what == "arms" and (of_steps, of_batch) == (f"{steps} steps", str(batch))
        if asked and tuple(how) in _HOW:
            rows += [
                [model, _HOW[tuple(how)], arm, *_figures(found)]
                for arm, found in measured.items()
                if "speedup" in found
            ]
    lines = [
        result_table.markdown(rows),
        "",
        f"({results['device']}; {steps} steps, batches of {batch}.)",
    ]
    return "\n".join([*lines, *(["", job] if job else [])])


def _figures(found: Mapping[str, Any]) -> list[str]:
    speedup = found["speedup"]
    return [
        f"{found['images_per_second']:.2f}",
        f"{speedup['median']:.2f}x [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        _shown(found["limit"], ".2f", "x"),
        _shown(found["of_the_limit"], ".2f"),
        _shown(found["joules_per_image"], ".0f"),
        _shown(found["peak_gib"], ".1f"),
    ]


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return _NONE if value is None else f"{value:{form}}{unit}"


def _job(model: str, steps: str, batch: str, measured: Mapping[str, Any]) -> str:
    arms = "; ".join(
        f"{arm} {found['images_per_second']:.2f} images/s, "
        f"{found['job_over_bare_with_encoding']['median']:.2f} of a bare loop's"
        for arm, found in measured.items()
    )
    return f"The whole job, from prompts to Parquet, {model}, {steps}, batches of {batch}: {arms}."
