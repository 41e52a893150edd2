"""Reads ``.npz`` files: each array is checked by its header before any of it is read.

A file may come from a stranger. Nothing in it is unpickled, and a small file cannot fill the
memory: its arrays may take ``MOST_BYTES``, or a few times its own size where that is more.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MOST_BYTES = 64 * 2**20
_MOST_TIMES = 4  # as many bytes of arrays as the file has: what compression of real data gives
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an ``.npz``; each is read when it is asked for.

    ``shapes`` has every array's shape, from the headers alone. Reading an array compares its
    checksum. Raises ValueError, and as ``zipfile`` does, for what is damaged, pickled or too large.
    """

    def __init__(self, content: bytes):
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        most = max(MOST_BYTES, _MOST_TIMES * len(content))
        declared = sum(member.file_size for member in self._zip.infolist())
        if declared > most:
            raise ValueError(
                f"its arrays take {declared:,} bytes in a file of {len(content):,}; at most "
                f"{most:,} are read"
            )
        self.shapes = {
            member.filename.removesuffix(".npy"): self._shape(member)
            for member in self._zip.infolist()
        }

    def _shape(self, member: zipfile.ZipInfo) -> tuple[int, ...]:
        if member.compress_type not in _METHODS:
            raise ValueError(f"{member.filename!r} is compressed by a method that is not read")
        with self._zip.open(member) as file:
            shape, dtype = _header(file)
            if dtype.hasobject or not dtype.itemsize:
                raise ValueError(
                    f"{member.filename!r} holds no plain numbers or text, and is not read"
                )
            if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"{member.filename!r} has not the size that its header declares")
        return shape

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.shapes:
            raise KeyError(key)
        name = f"{key}.npy"
        with self._zip.open(name if name in self._zip.NameToInfo else key) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # the checksum is compared at the end of the member
                raise ValueError(f"{key!r} is longer than its header declares")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"an array's format {version[0]}.{version[1]} is not read")
    return shape, dtype
