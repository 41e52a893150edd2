"""The report at scale, on a fabricated run: seconds, memory, and the bytes of the page.

No network runs: pictures are one drawing in many colours, measurements are those of
``scale_scoring``. The report is written in a fresh process.
"""

import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from benchmarks.scale_scoring import fabricate, scored
from tgate_batch import console
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.output.run import Run
from tgate_batch.records import ImageRecord

_ARMS = {
    "baseline": {},
    "tgate": {"gate_step": 10},
    "tgate-early": {"gate_step": 5},
    "deepcache": {"deepcache": {"interval": 3}},
}
_DRAWINGS = 16


def bench_scale_report(
    prompts: int = 10_000, side: Annotated[int, "pixels"] = 512
) -> dict[str, Any]:
    """Writes the report of so many prompts and 4 arms; prints and returns what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        console.info(f"fabricating and scoring {prompts:,} prompts ...", event="phase")
        settings = fabricate(folder, prompts, 8, shard=64, reference_rows=1000, arms=_ARMS)
        _draw(runs.load_run(settings.output), side)
        scored(settings)
        console.info("writing the report ...", event="phase")
        arguments = [sys.executable, "-m", "benchmarks.scale_report", settings.output]
        done = subprocess.run(arguments, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
    result = {"prompts": prompts, "arms": len(_ARMS), "side": side, **found}
    console.info(
        f"report of {prompts:,} prompts x {len(_ARMS)} arms, pictures of {side} pixels: "
        f"{result['seconds']:.1f} s, {result['mib']:.0f} MiB, page of "
        f"{result['page_bytes'] / 1e6:.2f} MB with {result['pictures']} pictures"
    )
    return result


def _draw(run: Run, side: int) -> None:
    """Writes every shard of every arm, of a few drawings over and over."""
    drawings = [_drawing(number, side) for number in range(_DRAWINGS)]
    for plan in run.shards:
        prompts = prompt_store.load_shard(run.folder, plan).prompts
        for arm in run.config.arms:
            records = [
                ImageRecord(p.id, 0, p.text, 0, "ok", image=drawings[n % _DRAWINGS])
                for n, p in enumerate(prompts)
            ]
            file, identity = run.pictures("demo", arm, plan)
            parquet.write_records(run.folder, file, "demo", arm, records, identity)


def _drawing(number: int, side: int) -> bytes:
    """A soft cloud with some grain: it compresses about as a photograph does."""
    chance = np.random.default_rng(number)
    coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), np.uint8))
    grain = chance.normal(0, 6, (side, side, 3))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + grain
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "webp", quality=75)
    return stream.getvalue()


def main() -> None:
    """Writes the report of an output folder; prints what it took as JSON."""
    from tgate_batch.report import page

    began = time.perf_counter()
    run = runs.load_run(sys.argv[1])
    page.write(run)
    content = run.folder.read(layout.REPORT_PAGE)
    result = {
        "seconds": time.perf_counter() - began,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "page_bytes": len(content),
        "pictures": content.count(b"data:image/webp"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
