"""The mark of AI generation: in every format, and of the pixels it changes none."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from tgate_batch.config import Images
from tgate_batch.render import codec

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
FORMATS = list(codec.FORMATS)


def opened(form: str, mark: bool) -> Image.Image:
    return Image.open(io.BytesIO(codec.encode_image(PIXELS, Images(format=form, mark=mark))))


def source_type(xmp: bytes) -> str:
    """IPTC's digital source type in an XMP packet, as an XML parser finds it."""
    from xml.etree import ElementTree

    described = ElementTree.fromstring(xmp).find(".//{*}Description")
    return described.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]


@pytest.mark.parametrize("form", FORMATS)
def test_picture_says_that_a_model_made_it(form):
    xmp = opened(form, mark=True).info["xmp"]
    assert source_type(xmp if isinstance(xmp, bytes) else xmp.encode()) == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_mark_changes_no_pixel_and_can_be_left_out(form):
    marked, plain = opened(form, mark=True), opened(form, mark=False)
    assert "xmp" not in plain.info
    assert np.array_equal(np.asarray(marked), np.asarray(plain))


@pytest.mark.parametrize("form", FORMATS)
def test_mark_costs_less_than_half_a_kilobyte_and_is_the_same_every_time(form):
    first, second = (codec.encode_image(PIXELS, Images(format=form)) for _ in range(2))
    assert first == second
    assert 300 < len(first) - len(codec.encode_image(PIXELS, Images(format=form, mark=False))) < 500


def test_video_says_that_a_model_made_it_in_a_box_at_its_end():
    frames = np.stack([PIXELS, PIXELS[::-1]])
    marked, plain = codec.encode_video(frames), codec.encode_video(frames, mark=False)
    box = marked[len(plain) :]
    assert marked == plain + box
    assert int.from_bytes(box[:4], "big") == len(box)
    assert box[4:8] == b"uuid"
    assert source_type(box[24:]) == codec.MARK
    with av.open(io.BytesIO(marked)) as container:
        assert len(list(container.decode(video=0))) == 2
