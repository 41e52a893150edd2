"""Picture formats on threads: speed and size beside one thread's PNG."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

import numpy as np
from PIL import Image

from benchmarks.timing import in_turns, ratio
from tgate_batch.config import Images
from tgate_batch.render import codec

FORMATS = tuple(codec.FORMATS)


def bench_encode(
    pictures: int = 16, side: Annotated[int, "pixels"] = 512, rounds: int = 5
) -> dict[str, Any]:
    """Image formats on threads: megapixels/s, speed and size relative to PNG on one thread."""
    drawn = [_picture(seed, side) for seed in range(pictures)]

    def encoded(format: str, threads: int) -> list[bytes]:
        images = Images(format=format)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda picture: codec.encode_image(picture, images), drawn))

    calls = {
        f"{format} x{threads}": partial(encoded, format, threads)
        for format in FORMATS
        for threads in (1, 2)
    }
    seconds = in_turns(calls, rounds, what="encoding")
    sizes = {format: sum(map(len, encoded(format, 1))) for format in FORMATS}
    return {
        name: {
            "megapixels_per_second": pictures * side * side / 1e6 / sorted(measured)[rounds // 2],
            "speedup": ratio(seconds["png x1"], measured),
            "size": sizes[name.split()[0]] / sizes["png"],
        }
        for name, measured in seconds.items()
    }


def _picture(seed: int, side: int) -> np.ndarray:
    """Smooth colours with a little noise, about as hard to compress as a rendered picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    noisy = smooth + rng.integers(-2, 3, smooth.shape)
    return noisy.clip(0, 255).astype(np.uint8)
