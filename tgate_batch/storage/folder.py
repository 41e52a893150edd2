"""A run's output folder, on a disk or in an object store: a file appears whole or not at all.

On a disk a file is written under a hidden temporary name, flushed and renamed. For an object store
(``s3://``, ``gs://``, ``abfs://``) it is built beside, and uploaded when it is whole.
"""

import contextlib
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from pyarrow import NativeFile, PythonFile, fs

from tgate_batch.errors import StorageError, UserError, one_line
from tgate_batch.storage import remote
from tgate_batch.storage.credentials import without_credentials
from tgate_batch.storage.trouble import PATIENCE, asked, is_outage, told

_TEMPORARY = ".tmp-"  # hidden, so readers of the folder pass it over
_PROBE = f"{_TEMPORARY}probe-"
_READERS = 16  # files that are read at once: a store answers each after a while

Answer = TypeVar("Answer")


def is_temporary(path: str) -> bool:
    """Whether this is a file that somebody is writing, or was when he was killed."""
    return PurePosixPath(path).name.startswith(_TEMPORARY)


def stays_inside(name: str) -> bool:
    """Whether a name, joined to a folder, is inside it on every system, links left aside."""
    return not (
        name.startswith("/")
        or ".." in name.split("/")
        or any(mark in name for mark in "\0\\")
        or re.match("[A-Za-z]:", name)  # a drive
    )


class Folder:
    """An output folder addressed by relative POSIX names; picklable, so workers can hold it.

    Every method raises UserError for a name that leaves the folder, and StorageError where the
    storage is in trouble. An object store that is away is waited for before that, for ``patience``
    seconds.
    """

    patience = PATIENCE

    def __init__(self, uri: str, roams: bool = False):
        """Raises UserError where the URI names no storage that can be reached.

        ``roams``: names may lead out of it, for reading: a list that a person wrote has such paths.
        """
        self.uri = uri if "://" in uri else str(Path(uri).resolve())
        self._roams = roams
        self._filesystem, self._base = self._resolve()
        self.local = isinstance(self._filesystem, fs.LocalFileSystem)

    @classmethod
    def of_file(cls, uri: str) -> tuple["Folder", str]:
        """The folder of a file's path or URI, and the file's name in it. Raises as Folder does."""
        scheme, mark, path = uri.partition("://") if "://" in uri else ("", "", uri)
        path, *query = path.split("?", 1) if mark else [path]
        parent, slash, name = path.rpartition("/")
        if (mark and not slash) or name in (".", ".."):
            return cls(uri), ""  # a bucket, or a folder
        where = "?".join([scheme + mark + parent + slash or ".", *query])
        return cls(where, roams=True), name  # the name is the caller's own

    def within(self, name: str) -> "Folder":
        """A folder inside this one."""
        self.path(name)
        where, *query = self.uri.split("?", 1) if "://" in self.uri else [self.uri]
        return Folder("?".join([f"{where.rstrip('/')}/{name}", *query]))

    def _resolve(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), self.uri
        try:
            return remote.connected(self.uri)
        except OSError as error:
            raise UserError(str(told(str(self), "reached", error))) from None
        except ValueError as error:
            reason = without_credentials(" ".join(str(error).split()))
            raise UserError(f"{self} cannot be reached: {reason}") from None

    def __reduce__(self):
        return (Folder, (self.uri, self._roams))

    def __str__(self) -> str:
        return without_credentials(self.uri)

    def path(self, name: str) -> str:
        """The full path of a name inside this folder, as its filesystem spells it.

        Raises UserError for a name that leaves the folder.
        """
        if not self._roams and not stays_inside(name):
            raise _leaves(name, self)
        return str(PurePosixPath(self._base) / name)

    def _to_change(self, name: str, itself: bool = False) -> str:
        """As ``path``, for what is written or deleted: no link on the way leads out of the folder.

        ``itself``: the name is no link either.
        """
        path = self.path(name)
        if not stays_inside(name):
            raise _leaves(name, self)
        if self.local:
            base = os.path.realpath(self._base)
            place = os.path.realpath(path if itself else os.path.dirname(path))
            if name and os.path.commonpath([base, place]) != base:
                raise _leaves(name, self)
        return path

    @property
    def hasty(self) -> "Folder":
        """This folder for somebody who would rather hear of trouble than wait."""
        made = self._copy()
        made.patience = 0.0
        return made

    @property
    def roaming(self) -> "Folder":
        """This folder for paths that a person wrote in it, which may lead elsewhere."""
        made = self._copy()
        made._roams = True
        return made

    def _copy(self) -> "Folder":
        made = object.__new__(Folder)
        made.__dict__ |= self.__dict__
        return made

    def _ask(self, done: str, call: Callable[[], Answer], name: str = "") -> Answer:
        """What the storage answers; ``done``: what cannot be done where it does not."""
        where = self._shown(name)
        if not self.local:
            return asked(where, done, call, self.patience)
        try:
            return call()
        except OSError as error:
            if is_outage(error):
                raise told(where, done, error) from error
            raise

    def _shown(self, name: str) -> str:
        return f"{name} in {self}" if name and not name.startswith(_PROBE) else str(self)

    def exists(self, name: str) -> bool:
        return self._kind_of(name) is fs.FileType.File

    def is_there(self, name: str) -> bool:
        """Whether there is a file or a folder of this name."""
        return self._kind_of(name) is not fs.FileType.NotFound

    def _kind_of(self, name: str) -> fs.FileType:
        call = lambda: self._filesystem.get_file_info(self.path(name)).type  # noqa: E731
        return self._ask("read", call, name)

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
            for info in self._ask("listed", lambda: self._filesystem.get_file_info(selector))
            if info.is_file and _TEMPORARY not in info.path
        )

    def stamps_of(self, names: Sequence[str]) -> list[tuple[str, int, int | None]]:
        """Name, bytes and time of these files, in their order, without those that are missing."""
        paths = [self.path(name) for name in names]
        found = self._ask("read", lambda: self._filesystem.get_file_info(paths))
        return [
            (name, info.size, info.mtime_ns)
            for name, info in zip(names, found, strict=True)
            if info.is_file
        ]

    def open(self, name: str) -> NativeFile:
        """Opens a finished file for random reading. Raises UserError for a pipe or a device."""
        path = self.path(name)
        self._check_regular(path, name)
        file = self._ask("read", lambda: self._filesystem.open_input_file(path), name)
        if self.local:
            return file
        return PythonFile(remote.RemoteFile(file, lambda call: self._ask("read", call, name)), "r")

    def _check_regular(self, path: str, name: str) -> None:
        """Raises UserError for a pipe, which opening would wait for, and for a device."""
        if not self.local:
            return
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):  # the storage says why
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{self._shown(name)} is not a regular file. Fix: remove it")

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """What these files hold, in their order; many are read at once."""
        with ThreadPoolExecutor(_READERS) as readers:
            return list(readers.map(self.read, names))

    def get(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | str) -> None:
        with self.create(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A writable stream; the file appears under its name only if the block succeeds."""
        try:
            with self._create_local(name) if self.local else self._create_remote(name) as stream:
                yield stream
        except OSError as error:
            if is_outage(error):
                raise told(self._shown(name), "written", error) from error
            raise

    @contextlib.contextmanager
    def _create_remote(self, name: str) -> Iterator[BinaryIO]:
        with remote.new_file() as file:
            yield cast(BinaryIO, file)
            content = remote.content_of(file)
            path = self._to_change(name)
            try:
                self._ask("written", lambda: remote.upload(self._filesystem, path, content), name)
            except FileNotFoundError as error:
                raise told(self._shown(name), "written", error) from None

    @contextlib.contextmanager
    def _create_local(self, name: str) -> Iterator[BinaryIO]:
        final = Path(self._to_change(name))
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
        final = Path(self._to_change(name))
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
        if not self.local:
            self.write(name, (self.get(name) or b"") + line.encode() + b"\n")
            return

        path = self._to_change(name, itself=True)

        self._check_regular(path, name)

        def add() -> None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

        self._ask("written", add, name)

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error."""
        path = self._to_change(name)
        with contextlib.suppress(FileNotFoundError):
            self._ask("deleted", lambda: self._filesystem.delete_file(path), name)

    def delete_all(self, under: str) -> None:
        """Removes every finished file below ``under``."""
        path = self._to_change(under, itself=True)
        if not self.local:  # a thousand with each request
            self._ask(
                "deleted",
                lambda: self._filesystem.delete_dir_contents(path, missing_dir_ok=True),
                under,
            )
            return
        for name in self.names(under):
            self.delete(name)

    def remove(self, under: str) -> None:
        """Removes a folder with everything in it; one that is not there is no error."""
        path = self._to_change(under, itself=True)
        with contextlib.suppress(FileNotFoundError):
            self._ask("deleted", lambda: self._filesystem.delete_dir(path), under)

    def check_writable(self) -> None:
        """Raises UserError unless files can be listed, written, read and deleted here.

        It does all four with a hidden file, which is gone again afterwards.
        """
        try:
            if self.local:
                self._probe_disk()
            else:
                self.hasty._probe_store()
        except StorageError as error:
            raise UserError(f"output {error}") from None

    def _probe_disk(self) -> None:
        try:
            here = next(p for p in (Path(self._base), *Path(self._base).parents) if p.exists())
            if not here.is_dir() or not os.access(here, os.R_OK | os.W_OK | os.X_OK):
                raise UserError(f"output {self} cannot be written: no right to write in {here}")
            probe = here / f"{_PROBE}{uuid.uuid4().hex}"
            try:
                probe.write_bytes(b"tgate_batch")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise UserError(f"output {self} cannot be written: {reason}") from None

    def _probe_store(self) -> None:
        name = f"{_PROBE}{uuid.uuid4().hex}"
        content = name.encode()
        self.names(name)
        self.write(name, content)
        try:
            if (found := self.get(name)) != content:
                raise UserError(
                    f"output {self} does not give back what was written ({found!r}); give another"
                )
        except StorageError:
            with contextlib.suppress(StorageError):  # the first refusal is the one to tell
                self.delete(name)
            raise
        self.delete(name)

    def temporary(self) -> list[str]:
        """What killed writers left under temporary names, sorted, relative to this folder."""
        if not self.local:
            return []
        base = Path(self._base)
        return sorted(file.relative_to(base).as_posix() for file in base.rglob(f"{_TEMPORARY}*"))

    def clear_temporary(self) -> int:
        """Removes what killed writers left under temporary names; returns how many."""
        if not self.local or not Path(self._base).is_dir():
            return 0
        left = list(Path(self._base).rglob(f"{_TEMPORARY}*"))
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)


def _leaves(name: str, folder: Folder) -> UserError:
    return UserError(
        f"{one_line(name)}: this name leads out of the folder {folder}, and nothing there is "
        "touched. Fix: remove it from the file or folder that names it"
    )
