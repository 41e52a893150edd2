"""An ``.npz`` is judged by its headers: what is too large, pickled or misdeclared is not read."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from tgate_batch.storage.archives import MOST_BYTES, Archive


def archive(write=np.savez, **arrays) -> bytes:
    stream = io.BytesIO()
    write(stream, **arrays)
    return stream.getvalue()


def header(shape, descr="<f8") -> bytes:
    stream = io.BytesIO()
    declared = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, declared)
    return stream.getvalue()


def zipped(member: bytes, method=zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("mu.npy", member)
    return stream.getvalue()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_they_were_written(write):
    arrays = {"mu": np.arange(6.0), "sample": np.ones((3, 2), np.float32), "about": np.array("é")}
    read = Archive(archive(write, **arrays))
    assert read.shapes == {"mu": (6,), "sample": (3, 2), "about": ()}
    assert set(read) == set(arrays)
    for key, array in arrays.items():
        assert read[key].dtype == array.dtype
        assert np.array_equal(read[key], array)
    assert "other" not in read


def test_a_small_file_cannot_fill_the_memory():
    content = zipped(header((MOST_BYTES // 4,)) + bytes(2 * MOST_BYTES))
    assert len(content) < MOST_BYTES / 100
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its arrays take"):
            Archive(content)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped(header((10**12,)) + bytes(80)), "differs in size from its header"),
        (zipped(header((10**12,), "<U0") + bytes(80)), "not an array of numbers or text"),
        (archive(mu=np.array([{}], object)), "not an array of numbers or text"),
        (zipped(header((10,)) + bytes(80), zipfile.ZIP_LZMA), "an unsupported compression method"),
        (zipped(b"\x93NUMPY\x09\x00"), "format 9.0 is not supported"),
        (b"\x93NUMPY", "not a zip file"),
    ],
)
def test_what_a_header_does_not_allow_is_refused(content, said):
    with pytest.raises((ValueError, zipfile.BadZipFile), match=said):
        Archive(content)


def test_a_changed_byte_is_found():
    content = bytearray(archive(mu=np.arange(1000.0)))
    content[2000] ^= 1
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        Archive(bytes(content))["mu"]
