"""A run's output folder, on a disk or in an object store: a file appears whole or not at all.

On a disk a file is written under a hidden temporary name, flushed and renamed. An object store
(``s3://``, ``gs://``, ``abfs://``) publishes an object only when its upload completes.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pyarrow import NativeFile, fs

from tgate_batch.errors import UserError

_TEMPORARY = ".tmp-"  # hidden, so readers of the folder pass it over
_USER_INFO = re.compile(r"(\w+://)[^/@\s]*@")
_SECRET_PARAMETER = re.compile(
    r"(?<=[?&])[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*&?|"
    r"&[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*$",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys taken out of every URI in it."""
    return _SECRET_PARAMETER.sub("", _USER_INFO.sub(r"\1", text))


def is_temporary(path: str) -> bool:
    """Whether this is a file that somebody is writing, or was when he was killed."""
    return PurePosixPath(path).name.startswith(_TEMPORARY)


class Folder:
    """An output folder addressed by relative POSIX names; picklable, so workers can hold it."""

    def __init__(self, uri: str):
        """Raises UserError where the URI names no storage that can be reached."""
        self.uri = uri if "://" in uri else str(Path(uri).resolve())
        self._filesystem, self._base = self._resolve()
        self.local = isinstance(self._filesystem, fs.LocalFileSystem)

    @classmethod
    def of_file(cls, uri: str) -> tuple["Folder", str]:
        """The folder of a file's path or URI, and the file's name in it. Raises as Folder does."""
        scheme, mark, path = uri.rpartition("://")
        path, *query = path.split("?", 1) if mark else [path]
        parent, slash, name = path.rpartition("/")
        if mark and not slash:
            return cls(uri), ""  # a bucket
        return cls("?".join([scheme + mark + parent + slash or ".", *query])), name

    def within(self, name: str) -> "Folder":
        """A folder inside this one."""
        where, *query = self.uri.split("?", 1) if "://" in self.uri else [self.uri]
        return Folder("?".join([f"{where.rstrip('/')}/{name}", *query]))

    def _resolve(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), self.uri
        try:
            return fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"output {str(self)!r} cannot be reached: {without_credentials(reason)}"
            ) from None

    def __reduce__(self):
        return (Folder, (self.uri,))

    def __str__(self) -> str:
        return without_credentials(self.uri)

    def path(self, name: str) -> str:
        """The full path of a name inside this folder, as its filesystem spells it."""
        return str(PurePosixPath(self._base) / name)

    def exists(self, name: str) -> bool:
        return self._filesystem.get_file_info(self.path(name)).type is fs.FileType.File

    def names(self, under: str, suffix: str = "") -> list[str]:
        """Finished files below ``under``, sorted, relative to this folder."""
        return [name for name, _ in self.sizes(under) if name.endswith(suffix)]

    def sizes(self, under: str) -> list[tuple[str, int]]:
        """Name and bytes of every finished file below ``under``, sorted. One listing."""
        return [(name, size) for name, size, _ in self.stamps(under)]

    def stamps(self, under: str) -> list[tuple[str, int, int | None]]:
        """As ``sizes``, with the time of the last change in ns (None: the store keeps none)."""
        selector = fs.FileSelector(self.path(under), recursive=True, allow_not_found=True)
        base = self._base.rstrip("/") + "/"
        return sorted(
            (info.path.removeprefix(base), info.size, info.mtime_ns)
            for info in self._filesystem.get_file_info(selector)
            if info.is_file and _TEMPORARY not in info.path
        )

    def stamps_of(self, names: Sequence[str]) -> list[tuple[str, int, int | None]]:
        """Name, bytes and time of these files, in their order, without those that are missing."""
        found = self._filesystem.get_file_info([self.path(name) for name in names])
        return [
            (name, info.size, info.mtime_ns)
            for name, info in zip(names, found, strict=True)
            if info.is_file
        ]

    def open(self, name: str) -> NativeFile:
        """Opens a finished file for random reading."""
        return self._filesystem.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, content: bytes | str) -> None:
        with self.create(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A writable stream; the file appears under its name only if the block succeeds."""
        target = self.path(name)
        if not self.local:
            with self._filesystem.open_output_stream(target) as stream:
                yield stream
            return
        final = Path(target)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f"{_TEMPORARY}{final.name}-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)

    def write_first(self, name: str, content: str) -> bool:
        """Writes a file unless it is there; returns whether this call wrote it.

        On a disk only one of several callers can succeed. An object store cannot promise that.
        """
        if not self.local:
            if self.exists(name):
                return False
            self.write(name, content)
            return True
        final = Path(self.path(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / f"{_TEMPORARY}{final.name}-{uuid.uuid4().hex}"
        temporary.write_text(content, encoding="utf-8")
        try:
            os.link(temporary, final)  # fails where the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def append(self, name: str, line: str) -> None:
        """Adds a line of text at the end of a file."""
        if self.local:
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path(name), "a", encoding="utf-8") as file:
                file.write(line + "\n")
            return
        before = self.read(name) if self.exists(name) else b""
        self.write(name, before + line.encode() + b"\n")

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_file(self.path(name))

    def delete_all(self, under: str) -> None:
        """Removes every finished file below ``under``."""
        for name in self.names(under):
            self.delete(name)

    def remove(self, under: str) -> None:
        """Removes a folder with everything in it; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem.delete_dir(self.path(under))

    def check_writable(self) -> None:
        """Raises UserError unless a file can be made here; leaves nothing behind."""
        if not self.local:
            return
        here = next(p for p in (Path(self._base), *Path(self._base).parents) if p.exists())
        if not here.is_dir() or not os.access(here, os.W_OK | os.X_OK):
            raise UserError(f"output {self} cannot be written: no right to write in {here}")

    def clear_temporary(self) -> int:
        """Removes what killed writers left under temporary names; returns how many."""
        if not self.local or not Path(self._base).is_dir():
            return 0
        left = list(Path(self._base).rglob(f"{_TEMPORARY}*"))
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)
