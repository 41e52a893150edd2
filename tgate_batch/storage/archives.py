"""Reads ``.npz`` files from untrusted sources: each array's header is checked before its data.

Nothing is unpickled, and a small file cannot fill the memory: its arrays may take ``MOST_BYTES``,
or a few times the size of the file if that is more.
"""

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

MOST_BYTES = 64 * 2**20
_MOST_TIMES = 4  # the ratio of the arrays' bytes to the file's; real data compresses less
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an ``.npz`` by name; each is read, and its checksum verified, on access.

    ``shapes`` has every array's shape, from the headers. Raises ValueError, or an error of
    ``zipfile``, for damaged, pickled or too large content.

    Example::

        mu = Archive(Path("reference.npz").read_bytes())["mu"]  # float64, (features,)
    """

    def __init__(self, content: bytes):
        self._zip = zipfile.ZipFile(io.BytesIO(content))
        most = max(MOST_BYTES, _MOST_TIMES * len(content))
        declared = sum(member.file_size for member in self._zip.infolist())
        if declared > most:
            raise ValueError(
                f"its arrays take {declared:,} bytes in a file of {len(content):,}, but at most "
                f"{most:,} are allowed"
            )
        self.shapes = {
            member.filename.removesuffix(".npy"): self._shape(member)
            for member in self._zip.infolist()
        }

    def _shape(self, member: zipfile.ZipInfo) -> tuple[int, ...]:
        if member.compress_type not in _METHODS:
            raise ValueError(f"{member.filename!r} has an unsupported compression method")
        with self._zip.open(member) as file:
            shape, dtype = _header(file)
            if dtype.hasobject or not dtype.itemsize:
                raise ValueError(f"{member.filename!r} is not an array of numbers or text")
            if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                raise ValueError(f"{member.filename!r} differs in size from its header")
        return shape

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.shapes:
            raise KeyError(key)
        name = f"{key}.npy"
        with self._zip.open(name if name in self._zip.NameToInfo else key) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # zipfile verifies the checksum at the end of the member
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
        raise ValueError(f"array format {version[0]}.{version[1]} is not supported")
    return shape, dtype
