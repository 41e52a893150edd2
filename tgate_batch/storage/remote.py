"""Access to object stores: few requests, few retries by the client, and random reads."""

import io
import mmap
import tempfile
from collections.abc import Callable
from typing import IO

from pyarrow import fs

IN_MEMORY = 64 << 20  # bytes of a file that is built in memory; a larger one is built on disk


def connect(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a URI and the path in it; raises OSError and ValueError."""
    if uri.partition("://")[0] in ("gs", "gcs") and "retry_limit_seconds=" not in uri:
        # By default the client retries for 15 minutes; `outages.retrying` does it for us.
        uri += ("&" if "?" in uri else "?") + "retry_limit_seconds=2"
    filesystem, path = fs.FileSystem.from_uri(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        # A URI cannot express all options, but the pickled form contains them.
        rebuild, (options,) = filesystem.__reduce__()
        if "allow_delayed_open" in options:  # one request for a small file, instead of three
            options["allow_delayed_open"] = True
        options["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=2)
        filesystem = rebuild(options)
    return filesystem, path


def new_file() -> tempfile.SpooledTemporaryFile:
    """Returns a temporary file in which a file is built before it is uploaded."""
    return tempfile.SpooledTemporaryFile(IN_MEMORY)


def content_of(file: tempfile.SpooledTemporaryFile) -> bytes | mmap.mmap:
    """Returns the content of a ``new_file``."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size <= IN_MEMORY:
        return file.read()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def upload(storage: fs.FileSystem, path: str, content: bytes | mmap.mmap) -> None:
    """Publishes an object.

    It is written in one call, because closing a stream publishes even an incomplete content.
    """
    with storage.open_output_stream(path) as stream:
        stream.write(content)


class RemoteFile(io.RawIOBase):
    """A file of a store for random reading; ``request`` calls a function, with retries."""

    def __init__(self, file: IO[bytes], request: Callable[[Callable[[], bytes]], bytes]):
        self._file = file
        self._request = request
        self._size = file.size()  # type: ignore[attr-defined]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        read = lambda: self._file.read_at(wanted, self._position)  # type: ignore[attr-defined]  # noqa: E731
        content = self._request(read)
        self._position += len(content)
        return content

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
