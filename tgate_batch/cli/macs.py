"""Counts the MACs of one image from the architecture: no weights, no network, no GPU.

Examples:
  tgate-batch macs             the table that T-GATE published, reproduced
  tgate-batch macs sdxl        the arms of a config (a file, or the name of a bundled one)
"""

import argparse
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tgate_batch import config, console
from tgate_batch.config import Config, Model, effective_sampling
from tgate_batch.models import catalogue
from tgate_batch.models.resolve import architecture_of, resolve_model, resolve_sampling

if TYPE_CHECKING:
    from tgate_batch.models.macs.arm import Macs
    from tgate_batch.models.macs.published import Published

_HEADINGS = [
    *("model", "arm", "settings", "MACs", "published", "error", "with attention", "params (M)")
]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="*", help="configs to count; default: the published table")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one item per arm")
    parser.add_argument(
        "--parts", action="store_true", help="count the text encoders and the VAE too"
    )


def run(options: argparse.Namespace) -> None:
    runs = [config.load(config.find(path)) for path in options.configs]
    with console.apart():
        console.info("counting MACs: loading torch and diffusers ...", event="phase")
        rows = count_rows(runs, options.parts)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


def count_rows(runs: list[Config], parts: bool) -> list[dict[str, Any]]:
    """Returns a row per arm of these runs; without runs, the rows of the published table."""
    from tgate_batch.execute.progress import WorkCounter
    from tgate_batch.models.macs.published import PUBLISHED

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    total = sum(len(run.models) * len(run.arms) for run in runs) if runs else len(PUBLISHED)
    progress = WorkCounter("counting MACs", "arms", total)
    rows = []
    for row in _rows(runs, parts) if runs else (published_row(row, parts) for row in PUBLISHED):
        rows.append(row)
        progress.add()
    progress.log()
    return rows


def published_row(row: "Published", parts: bool) -> dict[str, Any]:
    """Returns a published figure, our count, and our count with the documented settings."""
    from tgate_batch.models.macs.arm import macs_of

    entry = catalogue.entry(row.model)
    settings: dict[str, Any] = {"steps": row.steps, "guidance_scale": row.guidance_scale}
    counted = macs_of(row.model, plan=row.plan, deepcache=row.deepcache, **settings)
    values = _row(row.model, row.arm, row.plan, row.deepcache, row.steps, counted, row)
    values |= {
        "guidance_scale": row.guidance_scale,
        "size": [entry.width, entry.height],
    }
    if row.documented is not None:
        plan, deepcache = row.documented
        documented = macs_of(row.model, plan=plan, deepcache=deepcache, **settings)
        values |= {
            "documented_plan": plan and asdict(plan),
            "documented_deepcache": deepcache and asdict(deepcache),
            "documented_macs_t": documented.per_image / 1e12,
            "documented_relative_error": documented.per_image / 1e12 / row.macs_t - 1,
        }
    size = {"height": entry.height, "width": entry.width}
    model = Model(name=row.model)
    return values | (_parts(model, row.guidance_scale, **size) if parts else {})


def _rows(runs: list[Config], parts: bool) -> Iterator[dict[str, Any]]:
    """Yields every arm of the runs, with the published figure of its settings, if any."""
    from tgate_batch.models.macs.arm import macs_of_arm
    from tgate_batch.models.macs.published import published_for

    for run, model in [(each, model) for each in runs for model in each.models]:
        resolved = resolve_model(model)
        sampling = resolve_sampling(model, run.sampling, resolved)
        size = {"height": sampling.height, "width": sampling.width}
        documented = (resolved.row.height, resolved.row.width)
        for name, arm in run.arms.items():
            counted = macs_of_arm(model, arm, sampling)
            steps = effective_sampling(sampling, arm).steps
            plan = None if arm.plan is None else arm.plan.at(steps)
            published = None
            if (
                model.path is None
                and model.unet is None
                and arm.interval is None
                and arm.forecast is None
                and (sampling.height, sampling.width) == documented
            ):
                published = published_for(
                    model.name, plan, arm.cache, steps, sampling.guidance_scale
                )
            values = _row(model.name, name, plan, arm.cache, steps, counted, published)
            values |= {
                "guidance_scale": sampling.guidance_scale,
                "size": [sampling.width, sampling.height],
            }
            if parts:
                values |= _parts(model, sampling.guidance_scale, **size)
            yield values


def _row(
    model: str,
    arm: str,
    plan: Any,
    deepcache: Any,
    steps: int,
    counted: "Macs",
    published: "Published | None",
) -> dict[str, Any]:
    params = counted.params if plan is None else counted.params_after_gate
    planning, improving = counted.semantics_planning, counted.fidelity_improving
    return {
        "model": model,
        "arm": arm,
        "steps": steps,
        "plan": plan and asdict(plan),
        "deepcache": deepcache and asdict(deepcache),
        "macs_t": counted.per_image / 1e12,
        "macs_with_attention_t": counted.per_image_with_attention / 1e12,
        "semantics_planning_macs_t": planning.macs / 1e12,
        "semantics_planning_macs_with_attention_t": planning.macs_with_attention / 1e12,
        "fidelity_improving_macs_t": improving.macs / 1e12,
        "fidelity_improving_macs_with_attention_t": improving.macs_with_attention / 1e12,
        "params_m": params / 1e6,
        "published_params_m": published and published.params_m,
        "published_macs_t": published and published.macs_t,
        "relative_error": published and counted.per_image / 1e12 / published.macs_t - 1,
        "note": published and published.note,
    }


def _parts(model: Model, guidance_scale: float, height: int, width: int) -> dict[str, Any]:
    from tgate_batch.models.macs.arm import count_parts

    resolved = resolve_model(model)
    architecture = architecture_of(resolved, model)
    counted = count_parts(resolved.family, architecture, guidance_scale > 1, height, width)
    return {
        "parts": {
            name: {
                "macs_t": macs.macs / 1e12,
                "macs_with_attention_t": macs.macs_with_attention / 1e12,
                "params_m": params / 1e6,
            }
            for name, (macs, params) in counted.items()
        }
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the rows as a table, and notes on the published figures below it."""
    from rich.console import Console

    from tgate_batch.report.terminal import table, width

    cells = [
        [
            row["model"],
            row["arm"],
            _settings(row["steps"], row["plan"], row["deepcache"]),
            _tera(row["macs_t"]),
            "–" if row["published_macs_t"] is None else _tera(row["published_macs_t"]),
            "–" if row["relative_error"] is None else f"{row['relative_error']:+.3%}",
            _tera(row["macs_with_attention_t"]),
            f"{row['params_m']:.3f}",
        ]
        for row in rows
    ]
    console = Console(width=width(), highlight=False, markup=False)
    console.print("MACs of one image (for svd of one video), T: 10^12, G: 10^9")
    for line in table([_HEADINGS, *cells], console.width):
        console.print(line)
    console.print(
        "MACs: Linear and convolution layers of the denoiser alone, the published convention. "
        "Params of a gated arm: those read after the gate, without cross-attention."
    )
    for row in rows:
        if row["note"]:
            console.print(f"{row['model']} {row['arm']}: {row['note']}{_documented(row)}.")
        for name, part in row.get("parts", {}).items():
            console.print(
                f"{row['model']} {row['arm']} {name}: {_tera(part['macs_t'])}, with attention "
                f"{_tera(part['macs_with_attention_t'])}, {part['params_m']:.3f} M parameters"
            )


def _tera(macs_t: float) -> str:
    return f"{macs_t:.3f} T" if macs_t >= 0.01 else f"{macs_t * 1000:.3f} G"


def _documented(row: dict[str, Any]) -> str:
    if "documented_macs_t" not in row:
        return ""
    return f", {row['documented_macs_t']:.3f} T ({row['documented_relative_error']:+.1%})"


def _settings(steps: int, plan: dict | None, deepcache: dict | None) -> str:
    shown = [f"{steps} steps"]
    if plan is not None:
        shown += [f"gate {plan['gate_step']}"]
        names = (("sp_interval", "sp", 1), ("fi_interval", "fi", 1), ("warm_up", "warm-up", 0))
        shown += [f"{word} {plan[key]}" for key, word, plain in names if plan[key] != plain]
    if deepcache is not None:
        shown += [f"DeepCache interval {deepcache['interval']} branch {deepcache['branch']}"]
    return ", ".join(shown)
