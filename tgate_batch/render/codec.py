"""Pixels to files: WebP (lossless), PNG or JPEG pictures, MP4 videos; marked as made by a model.

The mark is XMP that says what IPTC calls the source of such media. It holds neither a date nor a
version: equal pixels give equal bytes.
"""

import io
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tgate_batch.config import Images
from tgate_batch.errors import UserError
from tgate_batch.storage.images import open_image

MARK = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{MARK}"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
)
_XMP_IN_PNG = "XML:com.adobe.xmp"  # the keyword of its iTXt chunk; XMP specification, part 3
_XMP_IN_MP4 = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")  # of its box; the same


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


def encode_image(pixels: np.ndarray, images: Images) -> bytes:
    """Compresses one picture, [height, width, 3] uint8."""
    chosen = FORMATS[images.format]
    options: dict[str, Any] = dict(chosen.options)
    if not chosen.lossless:
        options["quality"] = images.quality
    if images.mark:
        options |= _marked(images.format)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, images.format, **options)
    return stream.getvalue()


def _marked(form: str) -> dict[str, Any]:
    """The options that put the mark into a picture of this format."""
    if form != "png":
        return {"xmp": _XMP.encode()}
    texts = PngInfo()
    texts.add_itxt(_XMP_IN_PNG, _XMP)
    return {"pnginfo": texts}


def decode_image(content: bytes) -> Image.Image:
    """A stored picture in RGB; raises UserError for bytes that are no picture."""
    return open_image(content).convert("RGB")


def encode_video(frames: np.ndarray, mark: bool = True, frames_per_second: int = 7) -> bytes:
    """Compresses frames, [n, height, width, 3] uint8, to H.264 in MP4; ``mark``: marks it."""
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
    if mark:  # a box after the others: its length with these 8 bytes, its kind, its content
        box = _XMP_IN_MP4.bytes + _XMP.encode()
        stream.write((8 + len(box)).to_bytes(4, "big") + b"uuid" + box)
    return stream.getvalue()
