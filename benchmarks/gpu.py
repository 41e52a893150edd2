"""The GPU table: full-size models with random weights, a cell at a time, each kept at once.

A run that was cut goes on where it was: what the file has of this device is not measured again.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch

from benchmarks import random_weights
from benchmarks.cells import SIZES, Cell, Kept, Size
from benchmarks.gpu_job import job_beside_a_bare_loop
from benchmarks.timing import in_turns, ratio
from benchmarks.work import limit, products, profiled, work_of
from tgate_batch import console
from tgate_batch.errors import UserError
from tgate_batch.gate import DeepCache, GatePlan, cache_bytes, denoiser_of, gated
from tgate_batch.gate.supported_denoisers import find_denoiser
from tgate_batch.models import catalogue, engine
from tgate_batch.models.architecture import latent_scale
from tgate_batch.models.family import decode_images
from tgate_batch.models.pipeline_runner import pad_batch
from tgate_batch.output.history import processor
from tgate_batch.render.timing import Energy

_DOCUMENTED_STEPS = 25  # of the documents' plans
_PROFILED_STEPS = 3  # of the baseline, all of whose steps are alike
_BATCHES_IN_A_ROW = 2  # of which the first is decoded while the second is denoised

Arms = dict[str, tuple[GatePlan | None, DeepCache | None]]


def bench_gpu(
    size: Annotated[Literal["full", "small"], "small: for a CPU"] = "full",
    cells: Annotated[Path, "keeps each measured cell, which is not measured again"] = Path(
        "gpu-cells.jsonl"
    ),
    rounds: int = 3,
    minutes: Annotated[float | None, "no cell begins after them"] = None,
    only: Annotated[tuple[str, ...], "cells whose name has all these words"] = (),
    retry: Annotated[bool, "measure failed cells again"] = False,
) -> dict[str, Any]:
    """Measures the cells that the file ``cells`` lacks; returns all its cells of this device.

    After ``minutes`` no further cell is begun. ``only``: the cells whose name has all these words.
    ``retry``: those that failed are measured again. Raises UserError for a damaged file.
    """
    start = time.monotonic()
    bench = _Bench(SIZES[size], Kept(cells, f"{_device()}, {size}"), rounds)
    left = []
    for cell in bench.size.cells():
        if not all(word in str(cell) for word in only):
            continue
        kept = bench.kept.cells.get(str(cell))
        if kept is not None and not (retry and "error" in kept):
            continue
        if minutes is not None and time.monotonic() - start > 60 * minutes:
            left.append(str(cell))
            continue
        bench.measure(cell)
    return {"device": _device(), "size": size, "cells": bench.kept.cells, "left": left}


def _device() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{name}, torch {torch.__version__}"


@dataclass(frozen=True)
class _Model:
    """A model as a cell computes it, and the pipeline's call for some rows."""

    name: str
    pipe: Any
    given: dict[str, torch.Tensor]
    size: tuple[int, int]  # pixels
    kernel: str | None = None  # of attention

    def call(self, steps: int, rows: list[int] | None = None) -> Callable[[], torch.Tensor]:
        """Draws these rows, all if left out; noise is the rows' own."""
        row, family = catalogue.entry(self.name), catalogue.family_of(self.name)
        chosen = list(range(len(next(iter(self.given.values()))))) if rows is None else rows
        given = {name: values[chosen] for name, values in self.given.items()}
        draw = random_weights.call(self.pipe, family, given, steps, row.guidance_scale, self.size)

        def drawn() -> torch.Tensor:
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in chosen]
            with engine.attention(self.kernel):
                return draw(generator=generators)[0]

        return drawn


@dataclass
class _Watched:
    """A call, with what each time of it took."""

    call: Callable[[], Any]
    energy: Energy
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)  # bytes
    joules: list[float | None] = field(default_factory=list)

    def __call__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before, start = self.energy.joules(), time.perf_counter()
        self.call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peaks.append(torch.cuda.max_memory_allocated())
        self.seconds.append(time.perf_counter() - start)
        after = self.energy.joules()
        self.joules.append(None if before is None or after is None else after - before)


class _Bench:
    def __init__(self, size: Size, kept: Kept, rounds: int) -> None:
        self.size, self.kept = size, kept
        self._rounds = rounds
        self._on_gpu = torch.cuda.is_available()
        self._open: tuple[str, Any] = ("", None)
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}" if self._on_gpu else None
        self._energy = Energy(uuid)

    def measure(self, cell: Cell) -> None:
        """Measures the cell and keeps it; one that fails is kept with its error."""
        console.info(f"{cell} ...", event="phase")
        try:
            measured = getattr(self, cell.what)(cell)
        except Exception as error:  # out of memory, a kernel that refuses: the others go on
            self._open = ("", None)
            measured = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            self._check_device(cell, measured["error"])
        self.kept.keep(cell, measured)
        console.info(f"{cell}: {_in_short(measured)}")

    def _check_device(self, cell: Cell, error: str) -> None:
        """Raises UserError where the GPU computes no more in this process; the cell is kept."""
        if not self._on_gpu:
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            self.kept.keep(cell, {"error": error})
            raise UserError(
                f"bench gpu: {cell} left the GPU unusable ({error}); start again, and the cells "
                "after it are measured"
            ) from None

    def arms(self, cell: Cell) -> dict[str, Any]:
        """Each arm's speed, first call, memory and energy; its speed-up beside two limits of it.

        ``limit_by_macs`` is the ratio of all products, ``limit`` weighs each kind of work by its
        time in the baseline; None where the driver lets no profiler see the kernels.
        """
        model = self._model(cell)
        work, arms = self._work(cell, model), self._arms(model.pipe, cell.steps)
        watched = {
            arm: _Watched(partial(self._gated, model, cell.steps, *how), self._energy)
            for arm, how in arms.items()
        }
        seconds = in_turns(watched, self._rounds, what=f"measuring {cell}")
        spent = profiled(partial(self._gated, model, _PROFILED_STEPS, None, None))["seconds"]
        found: dict[str, Any] = {"baseline_seconds_by_kind": spent}
        for arm, each in watched.items():
            speedup = ratio(seconds["baseline"], seconds[arm])
            highest = limit(work[arm], work["baseline"], spent) if any(spent.values()) else None
            joules = [value for value in each.joules[1:] if value is not None]
            found[arm] = {
                "images_per_second": cell.batch / median(seconds[arm]),
                "first_seconds": each.seconds[0],
                "speedup": speedup,
                "limit_by_macs": products(work["baseline"]) / products(work[arm]),
                "limit": highest,
                "of_the_limit": None if highest is None else speedup["median"] / highest,
                "joules_per_image": median(joules) / cell.batch if joules else None,
                "peak_gib": max(each.peaks[1:]) / 2**30 if each.peaks else None,
                "cache_gib": self._cache(model, cell, arms[arm][0]),
            }
        return found

    def profile(self, cell: Cell) -> dict[str, Any]:
        """Where each arm's time goes, and the share of the call in which the device computes."""
        model = self._model(cell)
        found = {}
        for arm, how in self._arms(model.pipe, cell.steps).items():
            call = partial(self._gated, model, cell.steps, *how)
            (wall,) = in_turns({arm: call}, 1, what=f"measuring {arm}")[arm]
            spent = profiled(call)
            found[arm] = spent | {"busy_share": sum(spent["seconds"].values()) / wall}
        return found

    def bits(self, cell: Cell) -> dict[str, Any]:
        """By arm: whether a picture's latents are the same in every place of a padded batch."""
        model, rows = self._model(cell), list(range(cell.batch))
        others = {
            "reversed": rows[::-1],
            "a tail": rows[: -(-cell.batch // 2)],
            **{f"alone, {row}": [row] for row in (rows[0], rows[-1])},
        }
        found = {}
        for arm, how in self._arms(model.pipe, cell.steps).items():
            whole = self._gated(model, cell.steps, *how)
            equal = {}
            for name, chosen in others.items():
                drawn = self._gated(model, cell.steps, *how, rows=pad_batch(chosen, cell.batch))
                equal[name] = torch.equal(drawn[: len(chosen)], whole[chosen])
            found[arm] = {"same": all(equal.values()), "differ": [n for n in equal if not equal[n]]}
        return found

    def decode(self, cell: Cell) -> dict[str, Any]:
        """Seconds of the VAE for a batch; batches decoded while the next is denoised, over not."""
        model = self._model(cell)
        architecture = self._architecture(cell.model)
        found: dict[str, Any] = {}
        for dtype in dict.fromkeys((denoiser_of(model.pipe).dtype, torch.float32)):
            model.pipe.vae = random_weights.built(architecture.vae, self._where, dtype)
            engine.prepare(model.pipe, cell.settings)
            denoise = partial(self._gated, model, cell.steps, None, None)
            decode = partial(_decoded, model.pipe)
            latents = denoise()
            calls: dict[str, Callable[[], Any]]
            calls = {"decode": partial(decode, latents), "denoise": denoise}
            if self._on_gpu:
                calls["apart"] = partial(_one_after_the_other, denoise, decode)
                calls["overlapped"] = partial(_overlapped, denoise, decode)
            seconds = in_turns(calls, self._rounds, what=f"measuring {dtype}")
            found[str(dtype).removeprefix("torch.")] = {
                "seconds": median(seconds["decode"]),
                "over_denoising": ratio(seconds["decode"], seconds["denoise"]),
                "overlap_speedup": ratio(seconds["apart"], seconds["overlapped"])
                if self._on_gpu
                else None,
            }
        model.pipe.vae = None
        return found

    def job(self, cell: Cell) -> dict[str, Any]:
        """Images/s of the job, from prompts to Parquet, beside a bare loop's."""
        self._open = ("", None)  # its memory is needed
        self._tidy()
        return job_beside_a_bare_loop(cell, self.size.mid_size, self._rounds)

    def _gated(
        self,
        model: _Model,
        steps: int,
        plan: GatePlan | None,
        cache: DeepCache | None,
        rows: list[int] | None = None,
    ) -> torch.Tensor:
        with torch.inference_mode(), gated(model.pipe, plan, deepcache=cache):
            return model.call(steps, rows)()

    def _arms(self, pipe: Any, steps: int) -> Arms:
        """The documents' plans at the same parts of the steps, and DeepCache for U-Nets."""
        kind = find_denoiser(denoiser_of(pipe))
        assert kind is not None
        assert kind.plan is not None
        part = kind.plan.gate_step / _DOCUMENTED_STEPS
        second = GatePlan(part, sp_interval=kind.plan.sp_interval, warm_up=kind.plan.warm_up)
        arms: Arms = {
            "baseline": (None, None),
            "tgate-v1": (GatePlan(0.4), None),
            "tgate": (second, None),
        }
        if hasattr(pipe, "unet"):
            arms |= {
                "deepcache": (None, DeepCache()),
                "deepcache-tgate": (GatePlan(0.4), DeepCache()),
            }
        return arms

    def _work(self, cell: Cell, model: _Model) -> dict[str, dict[str, int]]:
        """Each arm's work for one picture: counted once, and kept as a cell of its own."""
        of = Cell("work", cell.model, cell.steps, 1)
        if str(of) not in self.kept.cells:
            counted, model = {}, replace(model, kernel=None)  # the cell is of every kernel
            for arm, (plan, cache) in self._arms(model.pipe, cell.steps).items():
                with gated(model.pipe, plan, deepcache=cache):
                    counted[arm] = work_of(model.call(cell.steps, [0]))
            self.kept.keep(of, counted)
        return self.kept.cells[str(of)]

    def _cache(self, model: _Model, cell: Cell, plan: GatePlan | None) -> float | None:
        """GiB of attention output that the plan is said to keep."""
        if plan is None:
            return None
        scale = latent_scale(self._architecture(cell.model).vae)
        height, width = (side // scale for side in model.size)
        kept = cache_bytes(
            denoiser_of(model.pipe), plan, cell.steps, height, width, images=cell.batch
        )
        return kept / 2**30

    def _model(self, cell: Cell) -> _Model:
        """The model as the cell computes it; kept until another one is asked for."""
        key = f"{cell.model} {sorted(cell.engine.items())}"
        if self._open[0] != key:
            self._open = ("", None)
            self._tidy()
            self._open = (key, self._pipeline(cell))
        family = catalogue.family_of(cell.model)
        pipe, architecture = self._open[1], self._architecture(cell.model)
        torch.manual_seed(1)
        given = random_weights.embeddings(pipe, family, architecture, cell.batch)
        row = catalogue.entry(cell.model)
        side = self.size.side
        size = (side or row.height, side or row.width)
        return _Model(cell.model, pipe, given, size, cell.settings.attention)

    def _pipeline(self, cell: Cell) -> Any:
        row, family = catalogue.entry(cell.model), catalogue.family_of(cell.model)
        half = torch.float16 if family.denoiser == "unet" else torch.bfloat16
        dtype = half if self._on_gpu else torch.float32
        architecture = self._architecture(cell.model)
        pipe = random_weights.pipeline(row, family, architecture, self._where, dtype)
        engine.prepare(pipe, cell.settings)
        return pipe

    def _architecture(self, name: str) -> Any:
        return random_weights.architecture_of(
            catalogue.entry(name), catalogue.family_of(name), self.size.mid_size
        )

    @property
    def _where(self) -> str:
        return "cuda" if self._on_gpu else "cpu"

    def _tidy(self) -> None:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


@torch.inference_mode()
def _decoded(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    return decode_images(pipe, latents)


def _one_after_the_other(denoise: Callable[[], Any], decode: Callable[[Any], Any]) -> None:
    for _ in range(_BATCHES_IN_A_ROW):
        decode(denoise())


def _overlapped(denoise: Callable[[], Any], decode: Callable[[Any], Any]) -> None:
    """The same batches, each decoded on a second stream while the next one is denoised."""
    side = torch.cuda.Stream()
    for _ in range(_BATCHES_IN_A_ROW):
        latents = denoise()
        side.wait_stream(torch.cuda.current_stream())
        latents.record_stream(side)
        with torch.cuda.stream(side):
            decode(latents)
    torch.cuda.current_stream().wait_stream(side)


def _in_short(measured: dict[str, Any]) -> str:
    """What was measured, in a line."""
    if "error" in measured:
        return measured["error"]
    said = []
    for name, values in measured.items():
        if not isinstance(values, dict):
            continue
        if "speedup" in values:
            speedup, share = values["speedup"]["median"], values["of_the_limit"]
            of_it = "" if share is None else f" ({share:.2f} of the limit)"
            said.append(f"{name} {values['images_per_second']:.3g} images/s, {speedup:.2f}x{of_it}")
        elif "same" in values:
            said.append(f"{name} {'same' if values['same'] else 'not the same'}")
        elif "busy_share" in values:
            said.append(f"{name} busy {values['busy_share']:.2f}")
        elif "job_over_bare" in values:
            said.append(f"{name} {values['images_per_second']:.3g} images/s")
    return "; ".join(said) or "measured"
