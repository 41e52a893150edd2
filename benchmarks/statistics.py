"""The memory of feature statistics, and the speed of distances beside pytorch-fid's."""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from tgate_batch import console
from tgate_batch.metrics.features import INCEPTION_FILE, Inception
from tgate_batch.metrics.frechet import Statistics, frechet_distance, stream
from tgate_batch.score.image_parts import NamedImage
from tgate_batch.score.image_sources import open_source
from tgate_batch.score.reference_file import decode_batches

# VmHWM, since a child's ru_maxrss starts at its parent's.
_MEMORY = """
import re
from pathlib import Path
import numpy as np
from tgate_batch.metrics.frechet import stream
batch = np.random.default_rng(0).random((1000, {dimensions}), np.float32)
batch @ batch.T
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
base = peak()
assert stream(batch for _ in range({rows} // 1000)).count == {rows}
print((peak() - base) / 1024)
"""


def write_random_inception(path: Path) -> None:
    """Writes pytorch-fid's network with random weights, for where only the way counts.

    The official weights cannot be redistributed with a package; any weights take as long.
    """
    from pytorch_fid import inception

    kept: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    with (
        patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(
            torch.nn.Module, "load_state_dict", lambda net, _: kept.update(net.state_dict())
        ),
    ):
        inception.fid_inception_v3()
    torch.save(kept, path)


def memory_mib(rows: int, dimensions: int = 2048) -> float:
    """MiB above the base that the statistics of so many features take, in a fresh process."""
    code = _MEMORY.format(rows=rows, dimensions=dimensions)
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(found.stdout)


def distance_seconds(dimensions: int = 2048, images: int = 5000) -> tuple[float, float, float]:
    """Seconds of pytorch-fid's distance and of ours from equal statistics; relative difference."""
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dimensions, dimensions)) / dimensions**0.5
    a, b = (
        Statistics.of(np.maximum(rng.normal(size=(images, dimensions)) @ mix + shift, 0))
        for shift in (0.3, 0.4)
    )
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = calculate_frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    between = time.perf_counter()
    ours = frechet_distance(a, b)
    return between - started, time.perf_counter() - between, abs(ours / theirs - 1)


def whole_seconds(images: int = 1000, side: int = 64) -> tuple[float, float, float]:
    """Seconds of ``python -m pytorch_fid`` and of our way from files to distance.

    Both read the same two folders of ``images`` / 2 PNGs each, the same weights (random ones), in
    batches of 50, on as many threads, each in a process of its own. The third is the relative
    difference of the two distances.
    """
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "torch", "hub", "checkpoints", INCEPTION_FILE)
        weights.parent.mkdir(parents=True)
        write_random_inception(weights)
        folders = [Path(scratch, name) for name in ("a", "b")]
        for seed, folder in enumerate(folders):
            folder.mkdir()
            rng = np.random.default_rng(seed)
            for n in range(images // 2):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize((side, side)).save(folder / f"{n:05d}.png")
        environment = {**os.environ, "TORCH_HOME": str(Path(scratch, "torch"))}
        paths = [str(folder) for folder in folders]

        def run(*arguments: str) -> tuple[float, float]:
            started = time.perf_counter()
            found = subprocess.run(
                [sys.executable, *arguments, *paths],
                check=True,
                capture_output=True,
                text=True,
                env=environment,
            )
            return time.perf_counter() - started, float(found.stdout.split()[-1])

        theirs = run("-W", "ignore", "-m", "pytorch_fid", "--device", "cpu")
        ours = run("-m", "benchmarks.statistics")
    return theirs[0], ours[0], abs(ours[1] / theirs[1] - 1)


def bench_statistics(images: int = 1000) -> dict[str, float]:
    """Measures memory, the distance and the whole way, saying a line each as it goes."""
    console.info("adding up 20,000 and 200,000 rows of features ...", event="phase")
    memory = {rows: memory_mib(rows) for rows in (20_000, 200_000)}
    for rows, mib in memory.items():
        console.info(f"statistics of {rows:,} x 2048 features: {mib:.0f} MiB above the base")
    console.info("measuring distances of 2048 dimensions ...", event="phase")
    theirs, ours, apart = distance_seconds()
    distance = theirs / ours
    console.info(
        f"distance from statistics, 2048 dimensions: {ours:.2f} s, pytorch-fid {theirs:.2f} s: "
        f"{distance:.1f} times as fast (relative difference {apart:.0e})"
    )
    console.info(f"measuring the whole way of {images:,} pictures ...", event="phase")
    theirs, ours, apart = whole_seconds(images)
    console.info(
        f"files to distance, {images} pictures: {ours:.1f} s, python -m pytorch_fid {theirs:.1f} "
        f"s: {theirs / ours:.2f} times as fast (relative difference {apart:.0e})"
    )
    return {
        "memory_mib_20000": memory[20_000],
        "memory_mib_200000": memory[200_000],
        "distance_speedup": distance,
        "whole_speedup": theirs / ours,
    }


def main() -> None:
    """Prints the distance of two folders of pictures on the weights in the torch hub folder."""
    extractor = Inception()
    a, b = (
        stream(map(extractor, decode_batches(pictures(path), batch_size=50)))
        for path in sys.argv[1:3]
    )
    print(frechet_distance(a, b))


def pictures(path: str) -> Iterator[NamedImage]:
    """All pictures of a folder, name and bytes."""
    return chain.from_iterable(part.images() for part in open_source(path).parts)


if __name__ == "__main__":
    main()
