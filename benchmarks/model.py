"""A catalogue architecture with random weights on the device at hand: speed needs no others."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch

from benchmarks import random_weights
from benchmarks.timing import in_turns, ratio
from tgate_batch import console
from tgate_batch.config import Engine
from tgate_batch.gate import DeepCache, GatePlan, gated, is_guided
from tgate_batch.models import catalogue, engine
from tgate_batch.models.macs.arm import count

_MID_SIDE = 512  # pixels of a mid-size model's picture


def bench_model(
    name: Annotated[str, "a catalogue name, for example sdxl"],
    mid_size: Annotated[bool, "small enough for a CPU"] = False,
    batch_sizes: tuple[int, ...] = (1,),
    steps: int = 25,
    gate_step: int = 10,
    rounds: int = 5,
    compile: Annotated[bool, "torch.compile of the denoiser"] = False,
    arms: Annotated[tuple[str, ...], "in addition to the baseline; default: all"] = (),
) -> dict[str, Any]:
    """Seconds, images/s and speed-up of the baseline, a V1 and a V2 plan, DeepCache and both.

    ``of_the_limit`` is the speed-up over the ratio of MACs (attention included): 1 where a gated
    call is as fast as its arithmetic allows. float16 on a GPU, float32 on a CPU. ``arms``: those
    to measure in addition to the baseline; empty means all. Raises UserError for models without an
    architecture to build.
    """
    row, family = catalogue.entry(name), catalogue.family_of(name)
    architecture = random_weights.architecture_of(row, family, mid_size)
    size = (_MID_SIDE, _MID_SIDE) if mid_size else (row.height, row.width)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    console.info(f"building {name} with random weights ...", event="phase")
    dtype = torch.float16 if device == "cuda" else torch.float32
    pipe = random_weights.pipeline(row, family, architecture, device, dtype)
    engine.prepare(pipe, Engine(compile=compile))
    guidance = row.guidance_scale
    guided = is_guided(pipe, guidance)
    plans = _arms(gate_step, unet=hasattr(pipe, "unet"))
    if arms:
        plans = {arm: plans[arm] for arm in plans if arm in ("baseline", *arms)}
    console.info(f"counting MACs of {len(plans)} arms ...", event="phase")
    macs = {
        arm: count(
            family, architecture, plan, cache, steps, guidance, *size
        ).per_image_with_attention
        for arm, (plan, cache) in plans.items()
    }
    found: dict[str, Any] = {
        "model": name,
        "mid_size": mid_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "compiled": compile,
        "steps": steps,
        "macs": macs,
        "batches": {},
    }
    for batch in batch_sizes:
        given = random_weights.embeddings(pipe, family, architecture, batch)
        call = random_weights.call(pipe, family, given, steps, guidance, size)
        calls = {
            arm: partial(_gated_call, pipe, plan, cache, guided, call)
            for arm, (plan, cache) in plans.items()
        }
        found["batches"][batch] = _compared(
            in_turns(calls, rounds, what=f"measuring batches of {batch}"), macs, batch
        )
        if device == "cuda":
            found["batches"][batch]["peak_gib"] = _peaks(calls)
    return found


def _compared(
    seconds: dict[str, list[float]], macs: Mapping[str, float], batch: int
) -> dict[str, dict[str, Any]]:
    compared = {}
    for arm, measured in seconds.items():
        speedup = ratio(seconds["baseline"], measured)
        compared[arm] = {
            "seconds": sorted(measured)[len(measured) // 2],
            "images_per_second": batch / sorted(measured)[len(measured) // 2],
            "speedup": speedup,
            "of_the_limit": speedup["median"] / (macs["baseline"] / macs[arm]),
        }
    return compared


def _peaks(calls: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Peak GPU memory of one call, GiB."""
    peaks = {}
    for arm, call in calls.items():
        torch.cuda.reset_peak_memory_stats()
        call()
        peaks[arm] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


def _arms(gate_step: int, unet: bool) -> dict[str, tuple[GatePlan | None, DeepCache | None]]:
    v2 = GatePlan(gate_step, sp_interval=3, fi_interval=1, warm_up=2)
    arms: dict[str, tuple[GatePlan | None, DeepCache | None]] = {
        "baseline": (None, None),
        "tgate-v1": (GatePlan(gate_step), None),
        "tgate-v2": (v2, None),
    }
    if unet:
        arms |= {
            "deepcache": (None, DeepCache()),
            "deepcache-tgate": (GatePlan(gate_step), DeepCache()),
        }
    return arms


@torch.inference_mode()
def _gated_call(
    pipe: Any,
    plan: GatePlan | None,
    cache: DeepCache | None,
    guided: bool,
    call: Callable[[], Any],
) -> None:
    with gated(pipe, plan, guided=guided, deepcache=cache):
        call()
