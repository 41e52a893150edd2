"""Counts MACs of one image from the architecture alone: no weights, no network, no GPU.

Examples:
  tgate-batch macs             every figure that T-GATE published, reproduced
  tgate-batch macs sdxl        the arms of a config, by its file or its shipped name
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tgate_batch import config
from tgate_batch.models import catalogue
from tgate_batch.models.macs import Macs, count_parts, find_architecture, macs_of, macs_of_arm
from tgate_batch.models.published import PUBLISHED, Published, published_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", nargs="*", help="runs to count; none: the published table")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one item an arm")
    parser.add_argument("--parts", action="store_true", help="text encoders and VAE as well")


def run(options: argparse.Namespace) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    if options.configs:
        rows = [row for path in options.configs for row in config_rows(path, options.parts)]
    else:
        rows = [published_row(row, options.parts) for row in PUBLISHED]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


def published_row(row: Published, parts: bool) -> dict[str, Any]:
    """One published figure beside its count, and beside that of the documented settings."""
    entry = catalogue.entry(row.model)
    settings: dict[str, Any] = {"steps": row.steps, "guidance_scale": row.guidance_scale}
    counted = macs_of(row.model, plan=row.plan, deepcache=row.deepcache, **settings)
    made = _row(row.model, row.arm, row.plan, row.deepcache, row.steps, counted, row)
    made |= {
        "guidance_scale": row.guidance_scale,
        "size": [entry.width, entry.height],
    }
    if row.documented is not None:
        plan, deepcache = row.documented
        documented = macs_of(row.model, plan=plan, deepcache=deepcache, **settings)
        made |= {
            "documented_plan": plan and asdict(plan),
            "documented_deepcache": deepcache and asdict(deepcache),
            "documented_macs_t": documented.per_image / 1e12,
            "documented_relative_error": documented.per_image / 1e12 / row.macs_t - 1,
        }
    size = {"height": entry.height, "width": entry.width}
    return made | (_parts(row.model, None, row.guidance_scale, **size) if parts else {})


def config_rows(path: str, parts: bool) -> Iterator[dict[str, Any]]:
    """Every arm of a config, with the published figure where its settings have one."""
    run = config.load(config.find(path))
    for model in run.models:
        sampling = catalogue.resolve(model.name, run.sampling)
        size = {"height": sampling.height, "width": sampling.width}
        entry = catalogue.entry(model.name)
        documented = (entry.height, entry.width)
        for name, arm in run.arms.items():
            counted = macs_of_arm(model, arm, sampling)
            plan = None if arm.plan is None else arm.plan.at(sampling.steps)
            published = None
            if model.path is None and (sampling.height, sampling.width) == documented:
                published = published_for(
                    model.name, plan, arm.cache, sampling.steps, sampling.guidance_scale
                )
            made = _row(model.name, name, plan, arm.cache, sampling.steps, counted, published)
            made |= {
                "guidance_scale": sampling.guidance_scale,
                "size": [sampling.width, sampling.height],
            }
            if parts:
                made |= _parts(model.name, model.path, sampling.guidance_scale, **size)
            yield made


def _row(
    model: str,
    arm: str,
    plan: Any,
    deepcache: Any,
    steps: int,
    counted: Macs,
    published: Published | None,
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


def _parts(
    model: str, path: str | None, guidance_scale: float, height: int, width: int
) -> dict[str, Any]:
    family, architecture = catalogue.family_of(model), find_architecture(model, path)
    counted = count_parts(family, architecture, guidance_scale > 1, height, width)
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
    """The rows as a table, and below it what the published figures leave open."""
    table = Table(
        title="MACs of one image (for svd of one video), T: 10^12, G: 10^9", title_justify="left"
    )
    for heading in ("model", "arm", "settings"):
        table.add_column(heading)
    for heading in ("MACs", "published", "error", "with attention", "params (M)"):
        table.add_column(heading, justify="right")
    for row in rows:
        published, error = row["published_macs_t"], row["relative_error"]
        table.add_row(
            row["model"],
            row["arm"],
            _settings(row["steps"], row["plan"], row["deepcache"]),
            _tera(row["macs_t"]),
            "–" if published is None else _tera(published),
            "–" if error is None else f"{error:+.3%}",
            _tera(row["macs_with_attention_t"]),
            f"{row['params_m']:.3f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
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
