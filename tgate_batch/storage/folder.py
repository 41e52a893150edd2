"""A run's output folder, on a disk or in an object store: a file appears whole or not at all.

On a disk a file is written under a hidden temporary name, flushed and renamed. For an object store
(``s3://``, ``gs://``, ``abfs://``) it is built beside, and uploaded when it is whole.

A folder with a ``fence`` is written only while that file exists: it is the claim of the run that
owns the folder, and whoever takes the folder over deletes it. On a disk nothing is written or
deleted through a symbolic link inside the folder.
"""

import contextlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from pyarrow import NativeFile, PythonFile, fs

from tgate_batch.errors import OutputLost, StorageError, UserError, one_line
from tgate_batch.storage import remote
from tgate_batch.storage.credentials import is_unescaped, without_credentials
from tgate_batch.storage.outages import (
    PATIENCE,
    as_storage_error,
    concerns_all_files,
    is_outage,
    retrying,
)

_TEMPORARY = ".tmp-"  # hidden, so readers of the folder pass it over
_PROBE = f"{_TEMPORARY}probe-"
_TEMPORARY_NAME = re.compile(rf"{re.escape(_TEMPORARY)}.+-[0-9a-f]{{32}}", re.DOTALL)
_READERS = 16  # files that are read at once: a store answers each after a while

Answer = TypeVar("Answer")


def is_temporary(path: str) -> bool:
    """Whether the file's own name is that of an unfinished write; folders above it do not count."""
    return _TEMPORARY_NAME.fullmatch(PurePosixPath(path).name) is not None


def _temporary_name(name: str) -> str:
    return f"{_TEMPORARY}{name}-{uuid.uuid4().hex}"


def stays_inside(name: str) -> bool:
    """Whether a name, joined to a folder, is inside it on every system, links left aside."""
    return not (
        name.startswith("/")
        or ".." in name.split("/")
        or any(mark in name for mark in "\0\\")
        or re.match("[A-Za-z]:", name)  # a drive
    )


def _check_escaped(uri: str) -> None:
    if is_unescaped(uri):
        raise UserError(
            f"{without_credentials(uri)} has credentials with a / in them, which hides their end. "
            "Fix: write %2F for the /, or give credentials in the environment"
        )


class Folder:
    """An output folder addressed by relative POSIX names; picklable, so workers can hold it.

    Every method raises UserError for a name that leaves the folder, and StorageError where the
    storage is in trouble. An object store that is away is waited for before that, for ``patience``
    seconds.

    ``fence`` is the full path of a file, or None. Where there is one, every method that writes or
    deletes raises OutputLost unless the file exists. Copies that are sent to workers keep it.
    """

    patience = PATIENCE
    fence: str | None = None

    def __init__(self, uri: str, roams: bool = False):
        """Raises UserError where the URI names no storage that can be reached.

        ``roams``: names may lead out of it, for reading: a list that a person wrote has such paths.
        """
        _check_escaped(uri)
        self.uri = uri if "://" in uri else str(Path(uri).resolve())
        self._roams = roams
        self._filesystem, self._base = self._resolve()
        self.local = isinstance(self._filesystem, fs.LocalFileSystem)

    @classmethod
    def of_file(cls, uri: str) -> tuple["Folder", str]:
        """The folder of a file's path or URI, and the file's name in it. Raises as Folder does."""
        _check_escaped(uri)
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
            raise UserError(str(as_storage_error(str(self), "reached", error))) from None
        except ValueError as error:
            reason = without_credentials(" ".join(str(error).split()))
            raise UserError(f"{self} cannot be reached: {reason}") from None

    def __reduce__(self):
        return (Folder, (self.uri, self._roams), {"fence": self.fence})

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
        """As ``path``, for what is written or deleted: no folder on the way is a symbolic link.

        ``itself``: the name is no link either. Raises UserError where one is.
        """
        if not stays_inside(name):
            raise _leaves(name, self)
        path = self.path(name)
        if self.local:
            parts = PurePosixPath(name).parts
            place = Path(self._base)
            for part in parts if itself else parts[:-1]:
                place /= part
                if place.is_symlink():
                    raise UserError(
                        f"output {self}: {one_line(place.relative_to(self._base))} is a symbolic "
                        "link, and nothing is written or deleted through one. Fix: put a folder in "
                        "its place, or give another output"
                    )
        return path

    @property
    def without_retries(self) -> "Folder":
        """This folder for somebody who would rather hear of trouble than wait."""
        made = self._copy()
        made.patience = 0.0
        return made

    @property
    def unconfined(self) -> "Folder":
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
            return retrying(where, done, call, self.patience)
        try:
            return call()
        except OSError as error:
            if is_outage(error):
                raise self._told(name, done, error) from error
            raise

    def _shown(self, name: str) -> str:
        return f"{name} in {self}" if name and not name.startswith(_PROBE) else str(self)

    def _told(self, name: str, done: str, error: OSError) -> StorageError:
        return as_storage_error(
            str(self) if concerns_all_files(error) else self._shown(name), done, error
        )

    def _change(self, done: str, call: Callable[[], Answer], name: str) -> Answer:
        """As ``_ask``, for what writes or deletes: only while the folder is ours, at each try."""

        def owned() -> Answer:
            self._check_owner()
            return call()

        return self._ask(done, owned, name)

    def _check_owner(self) -> None:
        """Raises OutputLost where the file that fences this folder is gone."""
        if self.fence is None:
            return
        if self.local:
            try:
                os.close(os.open(self.fence, os.O_RDONLY))  # a network's disk asks its server then
                return
            except FileNotFoundError:
                pass
        elif self._filesystem.get_file_info(self.fence).is_file:
            return
        raise OutputLost(
            f"output {self} no longer belongs to this run: another run took it over while this one "
            "showed no sign of life, or its claim was deleted; nothing more is written. Fix: wait "
            "for the other run, then rerun the same command"
        )

    def exists(self, name: str) -> bool:
        return self._kind_of(name) is fs.FileType.File

    def has_entry(self, name: str) -> bool:
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
            if info.is_file and not is_temporary(info.path)
        )

    def top_names(self) -> list[str]:
        """Finished files of this folder itself, sorted, without those in folders below it."""
        selector = fs.FileSelector(self._base, allow_not_found=True)
        found = self._ask("listed", lambda: self._filesystem.get_file_info(selector))
        return sorted(one.base_name for one in found if one.is_file and not is_temporary(one.path))

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
                raise self._told(name, "written", error) from error
            raise

    @contextlib.contextmanager
    def _create_remote(self, name: str) -> Iterator[BinaryIO]:
        with remote.new_file() as file:
            yield cast(BinaryIO, file)
            content = remote.content_of(file)
            path = self._to_change(name)
            try:
                upload = lambda: remote.upload(self._filesystem, path, content)  # noqa: E731
                self._change("written", upload, name)
            except FileNotFoundError as error:
                raise as_storage_error(self._shown(name), "written", error) from None

    @contextlib.contextmanager
    def _create_local(self, name: str) -> Iterator[BinaryIO]:
        final = Path(self._to_change(name))
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.parent / _temporary_name(final.name)
        try:
            with open(temporary, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            self._check_owner()
            try:
                os.replace(temporary, final)
            except FileNotFoundError:
                self._check_owner()  # whoever took the folder over removed the temporary file
                raise
        finally:
            temporary.unlink(missing_ok=True)

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

        self._change("written", add, name)

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is no error. Of a symbolic link the link itself."""
        path = self._to_change(name)
        with contextlib.suppress(FileNotFoundError):
            self._change("deleted", lambda: self._filesystem.delete_file(path), name)

    def delete_all(self, under: str) -> None:
        """Removes every finished file below ``under``."""
        path = self._to_change(under, itself=True)
        if not self.local:  # a thousand with each request
            self._change(
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
        delete = shutil.rmtree if self.local else self._filesystem.delete_dir
        with contextlib.suppress(FileNotFoundError):
            self._change("deleted", lambda: delete(path), under)  # of links inside the links alone

    def check_writable(self) -> None:
        """Raises UserError unless files can be listed, written, read and deleted here.

        It does all four with a hidden file, which is gone again afterwards.
        """
        try:
            if self.local:
                self._probe_disk()
            else:
                self.without_retries._probe_store()
        except StorageError as error:
            raise UserError(f"output {error}") from None

    def _probe_disk(self) -> None:
        try:
            here = next(p for p in (Path(self._base), *Path(self._base).parents) if p.exists())
            if not here.is_dir() or not os.access(here, os.R_OK | os.W_OK | os.X_OK):
                raise UserError(f"output {self} cannot be written: no right to write in {here}")
            probe = here / _temporary_name("probe")
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
        return sorted(
            (Path(place) / name).relative_to(base).as_posix()
            for place, _, names in os.walk(base)  # it follows no link
            for name in names
            if is_temporary(name)
        )

    def clear_temporary(self) -> int:
        """Removes what killed writers left under temporary names; returns how many."""
        left = self.temporary()
        for name in left:
            self.delete(name)
        return len(left)


def _leaves(name: str, folder: Folder) -> UserError:
    return UserError(
        f"{one_line(name)}: this name leads out of the folder {folder}, and nothing there is "
        "touched. Fix: remove it from the file or folder that names it"
    )
