"""Pixels to files: WebP (lossless), PNG or JPEG pictures, MP4 videos."""

import io
from fractions import Fraction

import numpy as np
from PIL import Image

from tgate_batch.config import Images

# Lossless WebP at its fastest: about twice PNG's fastest, a third smaller.
_OPTIONS = {
    "webp": {"lossless": True, "quality": 0, "method": 0},
    "png": {"compress_level": 1},
    "jpeg": {"subsampling": 0},
}


def picture(pixels: np.ndarray, images: Images) -> bytes:
    """Compresses one picture, [height, width, 3] uint8."""
    options = dict(_OPTIONS[images.format])
    if images.format == "jpeg":
        options["quality"] = images.quality
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, images.format, **options)
    return stream.getvalue()


def video(frames: np.ndarray, frames_per_second: int = 7) -> bytes:
    """Compresses frames, [n, height, width, 3] uint8, to H.264 in MP4."""
    import av

    stream = io.BytesIO()
    with av.open(stream, mode="w", format="mp4") as container:
        track = container.add_stream("libx264", rate=Fraction(frames_per_second))
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuv420p"
        track.options = {"crf": "17"}
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(track.encode())
    return stream.getvalue()
