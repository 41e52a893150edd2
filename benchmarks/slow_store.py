"""A store that takes its time for each request, on a folder of this machine."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from pyarrow import PythonFile, fs

from tgate_batch.storage import remote

SCHEME = "slow"
_NAMES_A_PAGE = 1000  # of a listing, as S3 gives them


@contextmanager
def slow_store(milliseconds: float) -> Iterator[None]:
    """Within the block, ``slow:///folder`` is a store on this folder that is slow to answer."""
    handler = _Handler(milliseconds / 1000)
    connect = remote.connect

    def connected_too(uri: str) -> tuple[fs.FileSystem, str]:
        scheme, _, path = uri.partition("://")
        return (fs.PyFileSystem(handler), path) if scheme == SCHEME else connect(uri)

    with mock.patch.object(remote, "connect", connected_too):
        yield


class _Handler(fs.FileSystemHandler):
    """Sleeps for each request, then does on the disk what it asks."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._disk = fs.LocalFileSystem()

    def _wait(self, requests: int = 1) -> None:
        time.sleep(requests * self.seconds)

    def get_type_name(self) -> str:
        return SCHEME

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        self._wait(len(paths))
        return self._disk.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        found = self._disk.get_file_info(selector)
        self._wait(1 + len(found) // _NAMES_A_PAGE)
        return found

    def open_input_file(self, path: str) -> PythonFile:
        self._wait()
        return PythonFile(_SlowFile(path, self._wait), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        self._wait()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return PythonFile(open(path, "wb"), mode="w")

    def delete_file(self, path: str) -> None:
        self._wait()
        os.unlink(path)

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the benchmark needs none of this")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refused
    move = copy_file = open_append_stream = _refused


class _SlowFile(io.FileIO):
    """A file of the store: each read is a request."""

    def __init__(self, path: str, wait: Any):
        super().__init__(path)
        self._wait = wait

    def read(self, size: int | None = -1) -> bytes:
        self._wait()
        return super().read(-1 if size is None else size)
