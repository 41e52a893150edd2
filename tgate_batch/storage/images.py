"""Opens images that may come from a stranger: few formats, each named, and none that runs code."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # as Pillow names them
MOST_BYTES = 64 << 20
_MOST_PIXELS = 100_000_000


def open_image(content: bytes) -> "Image.Image":
    """Opens an image of one of ``FORMATS``; raises OSError for other bytes.

    Pillow by itself would hand PostScript to Ghostscript.
    """
    from PIL import Image

    return Image.open(io.BytesIO(content), formats=FORMATS)


def fault_of(content: bytes) -> str | None:
    """Returns why bytes are not an image that can be decoded whole; None if they are one."""
    if len(content) > MOST_BYTES:
        return f"has more than {MOST_BYTES >> 20} MiB"
    try:
        opened = open_image(content)
    except Exception:  # each of Pillow's decoders has faults of its own
        return f"is not an image ({', '.join(FORMATS)})"
    with opened:
        if opened.width * opened.height > _MOST_PIXELS:
            return f"has more than {_MOST_PIXELS:,} pixels"
        try:
            opened.load()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"is a damaged image ({reason[:100]})"
    return None
