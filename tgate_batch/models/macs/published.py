"""The MACs that T-GATE published, and the settings that reproduce them.

Figures are those of the README of github.com/HaozheLiu-ST/T-GATE, whose caption says calflops.
"""

from dataclasses import dataclass
from typing import Any

from tgate_batch.gate.plan import DeepCache, GatePlan


@dataclass(frozen=True)
class Published:
    """One published figure: 10^12 MACs of one image, and millions of parameters where given.

    ``plan`` and ``deepcache`` are the settings that reproduce the figure. Where the documented
    settings do not, ``documented`` has them and ``note`` says so.
    """

    model: str
    arm: str
    macs_t: float
    params_m: float | None = None
    plan: GatePlan | None = None
    deepcache: DeepCache | None = None
    steps: int = 25
    guidance_scale: float = 7.5
    documented: tuple[GatePlan | None, DeepCache | None] | None = None
    note: str | None = None


_V1 = (GatePlan(10), None)
_FITTED_V1 = (
    "gate step 5 is not documented: it was inferred from this figure; the documented commands of "
    "the first version have gate step 10"
)
_FITTED_CACHE = (
    "branch 1 is not documented: it was inferred from this figure; the documented command has "
    "branch 0"
)
_FITTED_BOTH = (
    "branch 1 and gate step 13 are not documented: they were inferred from this figure; the "
    "documented command has branch 0 and gate step 10"
)
_SD21_PARAMS = (
    "SD 2.1 has 865.911 M parameters by its configuration; where the published 865.785 M comes "
    "from is open"
)
_LCM_SDXL: dict[str, Any] = {
    "steps": 4,
    "guidance_scale": 8.0,
}  # an input of the denoiser, not guidance
_LCM_ALPHA: dict[str, Any] = {"steps": 4, "guidance_scale": 0.0}
_ALPHA: dict[str, Any] = {"guidance_scale": 4.5, "params_m": 611.350}
_ALPHA_GATED: dict[str, Any] = {"guidance_scale": 4.5, "params_m": 462.585}

PUBLISHED: tuple[Published, ...] = (
    Published("sd15", "baseline", 16.938, 859.520),
    Published("sd15", "tgate-v1", 9.875, 815.557, GatePlan(5), documented=_V1, note=_FITTED_V1),
    Published("sd21", "baseline", 38.041, 865.785, note=_SD21_PARAMS),
    Published("sd21", "tgate-v1", 22.208, None, GatePlan(5), documented=_V1, note=_FITTED_V1),
    Published("sdxl", "baseline", 149.438, 2570.0),
    Published("sdxl", "tgate-v1", 84.438, 2024.0, GatePlan(5), documented=_V1, note=_FITTED_V1),
    Published("sdxl", "tgate", 95.988, 2024.0, GatePlan(10, 5, 1, 2)),
    Published("pixart_alpha", "baseline", 107.031, **_ALPHA),
    Published("pixart_alpha", "tgate-v1", 65.318, plan=GatePlan(8), **_ALPHA_GATED),
    Published("pixart_alpha", "tgate", 73.971, plan=GatePlan(15, 3, 1, 2), **_ALPHA_GATED),
    Published("pixart_sigma", "baseline", 107.766, guidance_scale=4.5),
    Published("pixart_sigma", "tgate", 74.420, plan=GatePlan(15, 3, 1, 2), guidance_scale=4.5),
    Published(
        "sdxl",
        "deepcache",
        57.888,
        deepcache=DeepCache(3, 1),
        documented=(None, DeepCache(3, 0)),
        note=_FITTED_CACHE,
    ),
    Published(
        "sdxl",
        "deepcache-tgate",
        43.868,
        plan=GatePlan(13),
        deepcache=DeepCache(3, 1),
        documented=(GatePlan(10), DeepCache(3, 0)),
        note=_FITTED_BOTH,
    ),
    Published("lcm_sdxl", "baseline", 11.955, **_LCM_SDXL),
    Published("lcm_sdxl", "tgate", 11.171, plan=GatePlan(1), **_LCM_SDXL),
    Published("lcm_pixart_alpha", "baseline", 8.563, **_LCM_ALPHA),
    Published("lcm_pixart_alpha", "tgate", 7.623, plan=GatePlan(1), **_LCM_ALPHA),
)


def published_for(
    model: str,
    plan: GatePlan | None,
    deepcache: DeepCache | None,
    steps: int,
    guidance_scale: float,
) -> Published | None:
    """The published figure of these settings at the model's size; None where there is none."""
    for row in PUBLISHED:
        same_branches = (row.guidance_scale > 1) == (guidance_scale > 1)
        settings = (row.model, row.plan, row.deepcache, row.steps)
        if same_branches and settings == (model, plan, deepcache, steps):
            return row
    return None
