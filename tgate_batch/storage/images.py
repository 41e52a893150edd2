"""Opens encoded images from untrusted sources: a few formats, and a limited number of pixels.

Pillow by default opens dozens of formats, and passes some of them (PostScript) to other programs,
so no other module of this package calls ``Image.open``.
"""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from tgate_batch.errors import UserError, one_line

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # as Pillow names them
MOST_BYTES = 2**26  # of one file
MOST_PIXELS = 2**26  # 8192 x 8192: 256 MiB as RGB


def open_image(content: bytes) -> Image.Image:
    """Returns the first image in ``content``, decoded, with Pillow's ``format`` and ``info``.

    Raises UserError for another format, damaged content, and more than ``MOST_PIXELS`` pixels.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height <= MOST_PIXELS:
            image.load()
            return image
    except UnidentifiedImageError:
        raise UserError(f"cannot be read as an image: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # each of Pillow's decoders raises other errors
        raise UserError(f"cannot be read as an image: {one_line(error)}") from None
    raise UserError(
        f"cannot be read as an image: it has {width:,} x {height:,} pixels, but at most "
        f"{MOST_PIXELS:,} are allowed"
    )


def open_upright(content: bytes) -> Image.Image:
    """Returns the image in RGB, rotated by its EXIF orientation; raises as ``open_image``."""
    upright = ImageOps.exif_transpose(open_image(content))
    if upright.mode == "I;16":  # Pillow would clip its 16 bits at 255
        upright = upright.point(lambda value: value / 257).convert("L")
    return upright.convert("RGB")
