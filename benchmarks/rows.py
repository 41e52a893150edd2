"""Rows with settings of their own beside uniform files of the same rows: what mixing costs."""

import csv
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
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
from tgate_batch.execute.progress import WorkCounter
from tgate_batch.output import run as runs
from tgate_batch.records import ShardResult

_SIZES = ((64, 64), (64, 96))  # height, width
_STEPS = (4, 6)
_NEGATIVES = ("", "blurry", "a red circle")
_BATCH = 8
_NONE = 1.0  # a guidance scale without guidance


_File = tuple[dict[str, Any], list[dict[str, Any]]]  # a run's sampling, its rows' own settings


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
    guidance scale and a negative prompt too. The two draw in turns, shard by shard. Timed is the
    rendering alone, to the last file, without loading and planning.
    """
    torch.set_num_threads(1)
    chance = random.Random(0)
    kinds = [chance.choice(_KINDS) for _ in range(rows)]
    of_kind = {kind: kinds.count(kind) for kind in _KINDS if kind in kinds}
    files: list[_File] = [(_run_settings(kind), [{}] * of_kind[kind]) for kind in of_kind]
    mixed: _File = ({}, [_row(kind, chance) for kind in kinds])
    for sampling, own in [*files, mixed]:  # kernels, and the counts of MACs
        _Side([(sampling, own[:_BATCH])]).finish()
    sides = {"mixed": _Side([mixed]), "uniform": _Side(files)}
    progress = WorkCounter("measuring", "rows", 2 * rows)
    while (side := min(sides.values(), key=lambda side: side.images)).images < rows:
        progress.add(side.draw())
    progress.log()
    for side in sides.values():
        side.finish()
    found: dict[str, Any] = {"rows": rows, "kinds": len(of_kind), "batch": _BATCH}
    for unit in ("seconds", "cpu_seconds"):
        found[unit] = {name: getattr(side, unit) for name, side in sides.items()}
    found["rows_drawn_a_row"] = {name: side.drawn / rows for name, side in sides.items()}
    for unit in ("second", "cpu_second"):
        spent = found[f"{unit}s"]
        found[f"images_per_{unit}_over_uniform"] = spent["uniform"] / spent["mixed"]
    return found


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


class _Side:
    """Files of rows that are drawn one after the other, and what it takes."""

    def __init__(self, files: list[_File]) -> None:
        self._files = files
        self._receipts = iter(self._draw_all())
        self.images = self.drawn = 0
        self.seconds = self.cpu_seconds = 0.0

    def draw(self) -> int:
        """Draws the next shard; returns its images. Raises UserError where a row was not drawn."""
        images = next(self._receipts, 0)
        if not images:
            raise UserError("bench rows: not every row was drawn; see what was said")
        self.images += images
        return images

    def _draw_all(self) -> Iterator[int]:
        for sampling, own in self._files:
            with tempfile.TemporaryDirectory() as scratch:
                run = workflow.prepare(_settings(Path(scratch), sampling, own))
                runs.begin_run(run)
                executor = LocalExecutor(run.config, run.folder)
                executor.fingerprint(run.config.models[0])  # loads it
                said = executor.run(rendering.render_pool(run, runs.pending(run)))
                while receipt := self._timed(said):
                    yield receipt.images
                rows = ds.dataset(f"{scratch}/out/images", format="parquet").to_table(["batch"])
                self.drawn += len(set(rows["batch"].to_pylist())) * _BATCH

    def _timed(self, said: Iterator[Any]) -> ShardResult | None:
        """The next file's receipt; None after the last."""
        start, cpu = time.perf_counter(), time.process_time()
        receipt = next((each for each in said if isinstance(each, ShardResult)), None)
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu
        return receipt

    def finish(self) -> None:
        """Draws what is left."""
        self.images += sum(self._receipts)


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
