"""The embedded model's whole run, as ``render --config demo`` does it: what its report says."""

import json
import tempfile
from pathlib import Path
from typing import Any

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.output import layout

# Of an arm's entry of report.json: without pictures' ids, histograms, and who drew which.
_KEPT = (
    *("model", "arm", "is_baseline", "plan", "images", "errors", "distance_label", "fd", "kid"),
    *("images_per_second_per_worker", "images_per_second_interval", "speedup", "speedup_interval"),
    *("macs_per_image_with_attention", "macs_saved", "paired", "intervals", "prompt_accuracy"),
    *("change", "kid_change", "usd_per_1000_images_billed", "usd_per_1000_images"),
)


def bench_demo(overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the run was, and its ``arms``: their entries of report.json, in part.

    ``overrides`` are laid over the config, as ``--set`` does. ``seconds`` is the whole command.
    Raises UserError where the run ends with another exit code than 0.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "demo")
        given = (*overrides, f"output={json.dumps(str(output))}")
        settings = config.load(config.find("demo"), given)
        if (code := workflow.render(settings)) != workflow.DONE:
            raise UserError(f"bench demo: the run ended with exit code {code}; see what it said")
        report = json.loads((output / layout.REPORT_JSON).read_text(encoding="utf-8"))
    bill = report["run"]["bill"]
    return {
        "steps": settings.sampling.steps,
        "workers": settings.workers.max,
        "usd_per_cpu_hour": settings.cost.usd_per_cpu_hour,
        "seconds": bill["wall_seconds"],
        "arms": [{key: arm.get(key) for key in _KEPT} for arm in report["arms"]],
    }
