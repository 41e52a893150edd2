"""How an object store is spoken to: few requests, few tries of its own, files read at random."""

import io
import mmap
import tempfile
from collections.abc import Callable
from typing import IO

from pyarrow import fs

IN_MEMORY = 64 << 20  # bytes of a file that is built in memory; a bigger one is built on disk

# Its client waits for a quarter of an hour by itself. Trying again is ours to do.
_GOOGLE_SECONDS = "retry_limit_seconds=2"


def connected(uri: str) -> tuple[fs.FileSystem, str]:
    """The storage of a URI, and the path in it. Raises OSError and ValueError as pyarrow does."""
    if uri.partition("://")[0] in ("gs", "gcs") and "retry_limit_seconds=" not in uri:
        uri += ("&" if "?" in uri else "?") + _GOOGLE_SECONDS
    found, path = fs.FileSystem.from_uri(uri)
    if isinstance(found, fs.S3FileSystem):
        # Not all of its options can be said in a URI. What pickles it has them all.
        rebuilt, (options,) = found.__reduce__()
        if "allow_delayed_open" in options:  # a small file is one request; older ones take three
            options["allow_delayed_open"] = True
        options["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=2)
        found = rebuilt(options)
    return found, path


def new_file() -> tempfile.SpooledTemporaryFile:
    """Where a file is built before it is uploaded."""
    return tempfile.SpooledTemporaryFile(IN_MEMORY)


def content_of(file: tempfile.SpooledTemporaryFile) -> bytes | mmap.mmap:
    """All that was written to a ``new_file``."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size <= IN_MEMORY:
        return file.read()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def upload(storage: fs.FileSystem, path: str, content: bytes | mmap.mmap) -> None:
    """Publishes an object.

    All of it in one call: closing a stream publishes what was written until then, whatever ended
    the writing.
    """
    with storage.open_output_stream(path) as stream:
        stream.write(content)


class RemoteFile(io.RawIOBase):
    """A file of a store, read at random. ``ask`` makes each request, and tries it again."""

    def __init__(self, file: IO[bytes], ask: Callable[[Callable[[], bytes]], bytes]):
        self._file = file
        self._ask = ask
        self._size = file.size()  # type: ignore[attr-defined]
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._place)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        found = self._ask(lambda: self._file.read_at(wanted, self._place))  # type: ignore[attr-defined]
        self._place += len(found)
        return found

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
