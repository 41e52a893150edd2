"""Rows with settings of their own beside uniform files of the same rows: what mixing costs."""

import csv
import random
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.dataset as ds
import torch

from tgate_batch import config, workflow
from tgate_batch.config import Config
from tgate_batch.demo import PATH
from tgate_batch.errors import UserError
from tgate_batch.execute import rendering
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.output import run as runs
from tgate_batch.records import Receipt

_SIZES = ((64, 64), (64, 96))  # height, width
_STEPS = (4, 6)
_NEGATIVES = ("", "blurry", "a red circle")
_BATCH = 8
_NONE = 1.0  # a guidance scale without guidance


class _Kind(NamedTuple):
    """What rows have to have in common to share a batch."""

    height: int
    width: int
    steps: int
    guided: bool


_KINDS = [
    _Kind(*size, steps, guided) for size, steps, guided in product(_SIZES, _STEPS, (True, False))
]


def bench_rows(rows: int = 2000) -> dict[str, Any]:
    """Images/s of a file of mixed rows over those of a uniform file for each of its 8 kinds.

    The embedded model, in this process, one thread. Kinds are drawn by chance, and the uniform
    files have as many rows of each: the same work. Mixed rows have a seed each, guided ones a
    guidance scale and a negative prompt too. Half of the uniform files come before the mixed one,
    half after. Timed is the rendering alone, to the last file, without loading and planning.
    """
    torch.set_num_threads(1)
    chance = random.Random(0)
    kinds = [chance.choice(_KINDS) for _ in range(rows)]
    of_kind = {kind: kinds.count(kind) for kind in _KINDS if kind in kinds}
    plain: dict[str, Any] = {}
    files = [(_run_settings(kind), [plain] * count) for kind, count in of_kind.items()]
    mixed = (plain, [_row(kind, chance) for kind in kinds])
    for sampling, own in [*files, mixed]:  # kernels, and the counts of MACs
        _drawn(sampling, own[:_BATCH])
    half = len(files) // 2
    uniform = [_drawn(*file) for file in files[:half]]
    beside = _drawn(*mixed)
    uniform += [_drawn(*file) for file in files[half:]]
    all_of_them = {key: sum(each[key] for each in uniform) for key in beside}
    return {
        "rows": rows,
        "kinds": len(of_kind),
        "batch": _BATCH,
        "seconds": {"mixed": beside["seconds"], "uniform": all_of_them["seconds"]},
        "cpu_seconds": {"mixed": beside["cpu_seconds"], "uniform": all_of_them["cpu_seconds"]},
        "rows_drawn_a_row": {
            "mixed": beside["drawn"] / rows,
            "uniform": all_of_them["drawn"] / rows,
        },
        "images_per_second_over_uniform": all_of_them["seconds"] / beside["seconds"],
        "images_per_cpu_second_over_uniform": all_of_them["cpu_seconds"] / beside["cpu_seconds"],
    }


def _run_settings(kind: _Kind) -> dict[str, Any]:
    return {
        "height": kind.height,
        "width": kind.width,
        "steps": kind.steps,
        "guidance_scale": 4.0 if kind.guided else _NONE,
    }


def _row(kind: _Kind, chance: random.Random) -> dict[str, Any]:
    scale = round(chance.uniform(2, 7), 1) if kind.guided else _NONE
    negative = chance.choice(_NEGATIVES) if kind.guided else ""
    own = {"seed": chance.randrange(2**31), "guidance_scale": scale, "negative_prompt": negative}
    return _run_settings(kind) | own


def _drawn(sampling: Mapping[str, Any], own: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds and CPU seconds of rendering so many rows, and how many rows the device drew."""
    with tempfile.TemporaryDirectory() as scratch:
        run = workflow.prepare(_settings(Path(scratch), sampling, own))
        runs.begin(run)
        executor = LocalExecutor(run.config, run.folder)
        executor.fingerprint(run.config.models[0])  # loads it
        pool = rendering.tasks(run, runs.pending(run))
        start, cpu = time.perf_counter(), time.process_time()
        receipts = [said for said in executor.run(pool) if isinstance(said, Receipt)]
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        if sum(receipt.images for receipt in receipts) != len(own):
            raise UserError("bench rows: not every row was drawn; see what was said")
        table = ds.dataset(f"{scratch}/out/images", format="parquet").to_table(columns=["batch"])
        batches = len(set(table["batch"].to_pylist()))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "drawn": batches * _BATCH}


def _settings(folder: Path, sampling: Mapping[str, Any], own: Iterable[dict[str, Any]]) -> Config:
    with open(PATH / "prompts.csv", newline="", encoding="utf-8") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream)]
    rows = [
        {"id": f"r{n}", "caption": captions[n % len(captions)], **each}
        for n, each in enumerate(own)
    ]
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": str(folder / "rows.csv")},
            "sampling": {"batch_size": _BATCH, **sampling},
            "arms": {"baseline": {}},
            "workers": {"executor": "local"},
            "output": str(folder / "out"),
        }
    )
