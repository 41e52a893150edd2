"""Pixels to files: WebP (lossless), PNG or JPEG pictures, MP4 videos."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from tgate_batch.config import Images
from tgate_batch.errors import UserError


@dataclass(frozen=True)
class Format:
    """A picture format of Pillow: the options it is saved with, and whether pixels survive it.

    One that is not lossless is saved with the config's ``images.quality``.
    """

    options: Mapping[str, int | bool]
    lossless: bool


FORMATS = {
    # At its fastest: about twice as fast as PNG's fastest, a third smaller.
    "webp": Format({"lossless": True, "quality": 0, "method": 0}, lossless=True),
    "png": Format({"compress_level": 1}, lossless=True),
    "jpeg": Format({"subsampling": 0}, lossless=False),
}


def check(images: Images) -> None:
    """Raises UserError for a format that is not known."""
    if images.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise UserError(f"images.format: unknown format {images.format!r}; one of: {known}")


def picture(pixels: np.ndarray, images: Images) -> bytes:
    """Compresses one picture, [height, width, 3] uint8."""
    chosen = FORMATS[images.format]
    options = dict(chosen.options)
    if not chosen.lossless:
        options["quality"] = images.quality
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, images.format, **options)
    return stream.getvalue()


def decode(content: bytes) -> Image.Image:
    """A stored picture in RGB; raises UserError for bytes that are no picture."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.convert("RGB")
    except Exception as error:  # each of Pillow's decoders has faults of its own
        reason = " ".join(str(error).split())
        raise UserError(f"cannot be read as a picture: {reason}") from None


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
