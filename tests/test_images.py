"""Images of a few formats are opened, and nothing that Pillow would hand to another program."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.render import codec
from tgate_batch.storage import images
from tgate_batch.storage.images import open_image

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def encoded(form, size=(8, 6)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_that_is_meant_is_opened(form):
    content = encoded(form)
    opened = open_image(content)
    assert (opened.format, opened.size) == (form, (8, 6))
    assert codec.decode_image(content).mode == "RGB"


@pytest.mark.parametrize("content", [POSTSCRIPT, encoded("PDF"), encoded("TGA"), encoded("ICO")])
def test_other_formats_are_refused_and_start_no_program(content, tmp_path, monkeypatch):
    started = tmp_path / "started"
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\n{shutil.which('touch')} {started}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked up once
    with pytest.raises(UserError, match="it is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
        codec.decode_image(content)
    assert not started.exists()


def test_an_image_of_too_many_pixels_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 47)
    with pytest.raises(UserError, match="8 x 6 pixels, but at most 47 are allowed"):
        open_image(encoded("PNG"))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_an_image_that_is_cut_off_is_refused(form):
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(encoded(form, (64, 64))[:-200])
