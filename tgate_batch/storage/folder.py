"""A run's output folder, on a disk or in an object store: a file appears whole or not at all.

On a disk a file is written under a hidden temporary name, flushed and renamed. For an object store
(``s3://``, ``gs://``, ``abfs://``) it is built locally and uploaded when it is complete.

A folder with a ``fence`` is written only while that file exists: it is the lock file of the run
that owns the folder, and a run that takes the folder over deletes it. On a disk nothing is written
or deleted through a symbolic link inside the folder.
"""

import contextlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from pyarrow import NativeFile, PythonFile, fs

from tgate_batch.errors import OutputLost, StorageError, UserError, one_line, os_reason, reason_of
from tgate_batch.storage import remote
from tgate_batch.storage.credentials import is_unescaped, without_credentials
from tgate_batch.storage.outages import (
    PATIENCE,
    as_storage_error,
    concerns_all_files,
    is_outage,
    retrying,
)

_TEMPORARY = ".tmp-"  # hidden, so readers of the folder ignore it
_PROBE = f"{_TEMPORARY}probe-"
_TEMPORARY_NAME = re.compile(rf"{re.escape(_TEMPORARY)}.+-[0-9a-f]{{32}}", re.DOTALL)
_THREADS = 16  # requests at once: a store answers each one with a delay

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_concurrently(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Returns the results of calls that mostly wait for a storage, in the order of the items.

    Example::

        map_concurrently(folder.read, folder.names("images"))
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))


def is_temporary(path: str) -> bool:
    """Returns True for the name of an unfinished write; the folders above it do not matter."""
    return _TEMPORARY_NAME.fullmatch(PurePosixPath(path).name) is not None


def _temporary_name(name: str) -> str:
    return f"{_TEMPORARY}{name}-{uuid.uuid4().hex}"


def stays_inside(name: str) -> bool:
    """Returns True if a name, joined to a folder, is inside it on every system, without links."""
    return not (
        name.startswith("/")
        or ".." in name.split("/")
        or any(mark in name for mark in "\0\\")
        or re.match("[A-Za-z]:", name)  # a drive
    )


def _check_escaped(uri: str) -> None:
    if is_unescaped(uri):
        raise UserError(
            f"{without_credentials(uri)} has credentials with a /, so their end is unknown. Fix: "
            "write %2F instead of /, or set the credentials in the environment"
        )


class Folder:
    """An output folder addressed by relative POSIX names; picklable, so it can be sent to workers.

    Every method raises UserError for a name that leads out of the folder, and StorageError in an
    outage. Requests to an object store are retried for ``patience`` seconds before that.

    ``fence`` is the full path of a file, or None. With a fence, every method that writes or deletes
    raises OutputLost unless that file exists. Copies that are sent to workers keep it.

    Example::

        folder = Folder("s3://bucket/run")
        folder.write("notes/a.txt", "text")
        folder.names("notes")  # ["notes/a.txt"]
    """

    patience = PATIENCE
    fence: str | None = None

    def __init__(self, uri: str, roams: bool = False):
        """Opens a path or URI; raises UserError if its storage cannot be reached.

        ``roams``: names may lead out of the folder for reading, as paths that a user lists may.
        """
        _check_escaped(uri)
        self.uri = uri if "://" in uri else str(Path(uri).resolve())
        self._roams = roams
        self._filesystem, self._base = self._resolve()
        self.local = isinstance(self._filesystem, fs.LocalFileSystem)

    @classmethod
    def of_file(cls, uri: str) -> tuple["Folder", str]:
        """Returns the folder of a file's path or URI, and the file's name in it.

        Raises UserError if its storage cannot be reached.
        """
        _check_escaped(uri)
        scheme, mark, path = uri.partition("://") if "://" in uri else ("", "", uri)
        path, *query = path.split("?", 1) if mark else [path]
        parent, slash, name = path.rpartition("/")
        if (mark and not slash) or name in (".", ".."):
            return cls(uri), ""  # a bucket, or a folder
        where = "?".join([scheme + mark + parent + slash or ".", *query])
        return cls(where, roams=True), name

    def within(self, name: str) -> "Folder":
        """Returns a folder inside this one."""
        self.path(name)
        where, *query = self.uri.split("?", 1) if "://" in self.uri else [self.uri]
        return Folder("?".join([f"{where.rstrip('/')}/{name}", *query]))

    def _resolve(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), self.uri
        try:
            return remote.connect(self.uri)
        except OSError as error:
            raise UserError(str(as_storage_error(str(self), "reached", error))) from None
        except ValueError as error:
            reason = without_credentials(reason_of(error, None))
            raise UserError(f"{self} cannot be reached: {reason}") from None

    def __reduce__(self):
        return (Folder, (self.uri, self._roams), {"fence": self.fence})

    def __str__(self) -> str:
        return without_credentials(self.uri)

    def path(self, name: str) -> str:
        """Returns the full path of a name inside this folder, as its filesystem spells it.

        Raises UserError for a name that leads out of the folder.
        """
        if not self._roams:
            self._check_inside(name)
        return str(PurePosixPath(self._base) / name)

    def _check_inside(self, name: str) -> None:
        if not stays_inside(name):
            raise UserError(
                f"{one_line(name)}: this name leads out of the folder {self}, so it is not used. "
                "Fix: remove it from the file or folder that names it"
            )

    def _writable_path(self, name: str, itself: bool = False) -> str:
        """Like ``path``, but raises UserError if a folder in the name is a symbolic link.

        ``itself``: the name may not be a link either.
        """
        self._check_inside(name)
        if self.local:
            parts = PurePosixPath(name).parts
            for end in range(1, len(parts) + itself):
                if Path(self._base, *parts[:end]).is_symlink():
                    raise UserError(
                        f"output {self}: {one_line('/'.join(parts[:end]))} is a symbolic link, and "
                        "nothing is written or deleted through one. Fix: put a folder in its "
                        "place, or give another output"
                    )
        return self.path(name)

    @property
    def without_retries(self) -> "Folder":
        """The same folder without retries: an outage raises StorageError at once."""
        return self._copy(patience=0.0)

    @property
    def unconfined(self) -> "Folder":
        """The same folder for paths that a user wrote in it, which may lead elsewhere."""
        return self._copy(_roams=True)

    def _copy(self, **changes: Any) -> "Folder":
        copy = object.__new__(Folder)
        copy.__dict__ |= self.__dict__ | changes
        return copy

    def _request(self, action: str, call: Callable[[], Result], name: str = "") -> Result:
        """Returns what the storage answers; ``action`` ("read") completes "cannot be ..."."""
        if not self.local:
            return retrying(self._shown(name), action, call, self.patience)
        with self._outages(action, name):
            return call()

    @contextlib.contextmanager
    def _outages(self, action: str, name: str) -> Iterator[None]:
        """Raises StorageError for an OSError of the block that is an outage."""
        try:
            yield
        except OSError as error:
            if is_outage(error):
                where = str(self) if concerns_all_files(error) else self._shown(name)
                raise as_storage_error(where, action, error) from error
            raise

    def _shown(self, name: str) -> str:
        return f"{name} in {self}" if name and not name.startswith(_PROBE) else str(self)

    def _change(self, action: str, call: Callable[[], Result], name: str) -> Result:
        """Like ``_request``, for a write or deletion: each try checks that the folder is ours."""

        def owned() -> Result:
            self._check_owner()
            return call()

        return self._request(action, owned, name)

    def _check_owner(self) -> None:
        """Raises OutputLost if the file that fences this folder is gone."""
        if self.fence is None:
            return
        if self.local:
            try:
                os.close(os.open(self.fence, os.O_RDONLY))  # a network disk then asks its server
                return
            except FileNotFoundError:
                pass
        elif self._filesystem.get_file_info(self.fence).is_file:
            return
        raise OutputLost(
            f"output {self} no longer belongs to this run: another run took it over while this one "
            "did not respond, or its lock was deleted; nothing more is written. Fix: wait for the "
            "other run, then rerun the same command"
        )

    def exists(self, name: str) -> bool:
        return self._file_type(name) is fs.FileType.File

    def has_entry(self, name: str) -> bool:
        """Returns True if there is a file or a folder of this name."""
        return self._file_type(name) is not fs.FileType.NotFound

    def _file_type(self, name: str) -> fs.FileType:
        call = lambda: self._filesystem.get_file_info(self.path(name)).type  # noqa: E731
        return self._request("read", call, name)

    def names(self, under: str, suffix: str = "") -> list[str]:
        """Returns the finished files below ``under``, sorted, relative to this folder."""
        return [name for name, _ in self.sizes(under) if name.endswith(suffix)]

    def sizes(self, under: str) -> list[tuple[str, int]]:
        """Returns (name, bytes) of every finished file below ``under``, sorted; one listing."""
        return [(name, size) for name, size, _ in self.stamps(under)]

    def stamps(self, under: str) -> list[tuple[str, int, int | None]]:
        """Like ``sizes``, with the time of the last change in ns; None if the store has none."""
        selector = fs.FileSelector(self.path(under), recursive=True, allow_not_found=True)
        base = self._base.rstrip("/") + "/"
        return sorted(
            (info.path.removeprefix(base), info.size, info.mtime_ns)
            for info in self._request("listed", lambda: self._filesystem.get_file_info(selector))
            if info.is_file and not is_temporary(info.path)
        )

    def top_names(self) -> list[str]:
        """Returns the finished files of this folder itself, sorted, without those below it."""
        selector = fs.FileSelector(self._base, allow_not_found=True)
        infos = self._request("listed", lambda: self._filesystem.get_file_info(selector))
        return sorted(one.base_name for one in infos if one.is_file and not is_temporary(one.path))

    def stamps_of(self, names: Sequence[str]) -> list[tuple[str, int, int | None]]:
        """Returns (name, bytes, time) of these files, in order, without missing ones."""
        paths = [self.path(name) for name in names]
        infos = self._request("read", lambda: self._filesystem.get_file_info(paths))
        pairs = zip(names, infos, strict=True)
        return [(name, info.size, info.mtime_ns) for name, info in pairs if info.is_file]

    def open(self, name: str) -> NativeFile:
        """Opens a finished file for random reading; raises UserError for a pipe or a device."""
        path = self.path(name)
        self._check_regular(path, name)
        file = self._request("read", lambda: self._filesystem.open_input_file(path), name)
        if self.local:
            return file
        request = lambda call: self._request("read", call, name)  # noqa: E731
        return PythonFile(remote.RemoteFile(file, request), "r")

    def _check_regular(self, path: str, name: str) -> None:
        """Raises UserError for a device and for a pipe, on which opening would block."""
        if not self.local:
            return
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):  # opening the file raises the reason
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{self._shown(name)} is not a regular file. Fix: remove it")

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Returns the contents of these files, in order; they are read concurrently."""
        return map_concurrently(self.read, names)

    def get(self, name: str) -> bytes | None:
        """Returns the content of a file; None if there is no such file."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | str) -> None:
        with self.create(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Yields a writable stream; the file appears under its name only if the block succeeds."""
        create = self._create_local if self.local else self._create_remote
        with self._outages("written", name), create(name) as stream:
            yield stream

    @contextlib.contextmanager
    def _create_remote(self, name: str) -> Iterator[BinaryIO]:
        with remote.new_file() as file:
            yield cast(BinaryIO, file)
            content = remote.content_of(file)
            path = self._writable_path(name)
            try:
                upload = lambda: remote.upload(self._filesystem, path, content)  # noqa: E731
                self._change("written", upload, name)
            except FileNotFoundError as error:
                raise as_storage_error(self._shown(name), "written", error) from None

    @contextlib.contextmanager
    def _create_local(self, name: str) -> Iterator[BinaryIO]:
        final = Path(self._writable_path(name))
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
                self._check_owner()  # a run that took the folder over removed the temporary file
                raise
        finally:
            temporary.unlink(missing_ok=True)

    def append(self, name: str, line: str) -> None:
        """Appends a line of text to a file."""
        if not self.local:
            return self.write(name, (self.get(name) or b"") + line.encode() + b"\n")
        path = self._writable_path(name, itself=True)
        self._check_regular(path, name)

        def add() -> None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

        self._change("written", add, name)

    def delete(self, name: str) -> None:
        """Removes a file, or a symbolic link itself; a missing file is not an error."""
        path = self._writable_path(name)
        with contextlib.suppress(FileNotFoundError):
            self._change("deleted", lambda: self._filesystem.delete_file(path), name)

    def delete_all(self, under: str) -> None:
        """Removes every finished file below ``under``."""
        path = self._writable_path(under, itself=True)
        if not self.local:  # a thousand files with each request
            delete = partial(self._filesystem.delete_dir_contents, path, missing_dir_ok=True)
            return self._change("deleted", delete, under)
        for name in self.names(under):
            self.delete(name)

    def remove(self, under: str) -> None:
        """Removes a folder and its content, but no link's target; a missing folder is no error."""
        path = self._writable_path(under, itself=True)
        delete = shutil.rmtree if self.local else self._filesystem.delete_dir
        with contextlib.suppress(FileNotFoundError):
            self._change("deleted", lambda: delete(path), under)

    def check_writable(self) -> None:
        """Raises UserError unless files can be listed, written, read and deleted here.

        It tries all four with a hidden file, which it removes.
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
                raise UserError(
                    f"output {self} cannot be written: no permission to write in {here}. Fix: "
                    "change its permissions, or give another output"
                )
            probe = here / _temporary_name("probe")
            try:
                probe.write_bytes(b"tgate_batch")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output {self} cannot be written: {os_reason(error)}") from None

    def _probe_store(self) -> None:
        name = f"{_PROBE}{uuid.uuid4().hex}"
        content = name.encode()
        self.names(name)
        self.write(name, content)
        try:
            if (stored := self.get(name)) != content:
                raise UserError(
                    f"output {self} does not return the content that was written ({stored!r}). "
                    "Fix: give another output"
                )
        except StorageError:
            with contextlib.suppress(StorageError):  # the first error is the one to report
                self.delete(name)
            raise
        self.delete(name)

    def temporary(self) -> list[str]:
        """Returns the unfinished files of killed writers, sorted, relative to this folder."""
        if not self.local:
            return []
        base = Path(self._base)
        return sorted(
            (Path(parent) / name).relative_to(base).as_posix()
            for parent, _, names in os.walk(base)  # which follows no links
            for name in names
            if is_temporary(name)
        )

    def clear_temporary(self) -> int:
        """Removes the unfinished files of killed writers; returns their number."""
        unfinished = self.temporary()
        for name in unfinished:
            self.delete(name)
        return len(unfinished)
