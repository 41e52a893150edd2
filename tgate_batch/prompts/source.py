"""A file that a user names, on a disk or in an object store, opened for reading."""

import gzip
import os
import stat
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tgate_batch import demo
from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.storage import Folder, without_credentials

_READ_AT_ONCE = 16 << 20  # bytes asked of a store in one request
NO_NAME = "holds a character that no file's name may have"
_PACKED = ".gz"
_UNPACKED_FREELY = 64 << 20  # bytes
_MOST_EXPANSION = 200  # times; gzip reaches 1,032, and texts that are much alike 100


@dataclass(frozen=True)
class PromptFile:
    """A file, as its folder and its name in it. As text: what the user wrote, without secrets."""

    written: str
    folder: Folder
    name: str
    member: str = ""  # of a file that a folder or pattern stands for: its name there, no suffix

    @classmethod
    def of(cls, path: str) -> "PromptFile":
        """The file of a path, a ``~`` path or a URI; ``demo``: the embedded model's captions.

        Raises UserError where it cannot be one.
        """
        if path == "demo":
            return cls(path, *Folder.of_file(str(demo.PROMPTS)))
        try:
            found = Folder.of_file(path if "://" in path else os.path.expanduser(path))
        except UserError:
            raise
        except ValueError:  # NUL, or text that no file system can hold
            raise UserError(f"{shown(without_credentials(path))} {NO_NAME}") from None
        return cls(path, *found)

    def as_member(self, name: str) -> "PromptFile":
        """This file under its name in the folder or pattern that stands for it."""
        plain = name[: -len(_PACKED)] if name.lower().endswith(_PACKED) else name
        return replace(self, member=os.path.splitext(plain)[0])

    def __str__(self) -> str:
        return one_line(without_credentials(self.written))

    @property
    def packed(self) -> bool:
        """Whether gzip has compressed it, as its name says."""
        return self.name.lower().endswith(_PACKED)

    @property
    def suffix(self) -> str:
        """What kind of file it is, in small letters; of a compressed one, what it unpacks to."""
        name = self.name.lower()
        return os.path.splitext(name.removesuffix(_PACKED))[1] or os.path.splitext(name)[1]

    @property
    def has_loose_rows(self) -> bool:
        """Whether each row names its columns itself, so that a later one may have further ones."""
        return self.suffix in (".json", ".jsonl", ".txt")

    @property
    def location(self) -> str:
        """The folder that it is looked for in: in full, without secrets and a URI's options."""
        where = str(self.folder)
        return one_line((where.split("?", 1)[0] if "://" in where else where).rstrip("/"))

    def fault(self) -> str | None:
        """Why it cannot be read: "does not exist", ...; None: it can be opened."""
        try:
            if not self.folder.local:
                return None if self.name and self.folder.exists(self.name) else self._missing()
            mode = os.stat(self.folder.path(self.name)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return self._missing()
        except OSError as error:
            return f"cannot be read: {_reason(error)}"
        except ValueError:  # NUL, or text that no file system can hold
            return NO_NAME
        if stat.S_ISDIR(mode):
            return "is a folder, not a file"
        return None if stat.S_ISREG(mode) else "is not a regular file; copy its content into one"

    def _missing(self) -> str:
        return f"does not exist (looked in {self.location})"

    def open(self) -> Any:
        """A binary stream of its content, unpacked. Raises OSError, as reading it does."""
        return _Unpacked(self.stored()) if self.packed else self.stored()

    def stored(self) -> Any:
        """A binary stream of its bytes as they lie, read from the start. Raises OSError."""
        if self.folder.local:
            return open(self.folder.path(self.name), "rb")
        return pa.BufferedInputStream(self.folder.open(self.name), _READ_AT_ONCE)

    def open_anywhere(self) -> Any:
        """A binary file for reading at any place. Raises OSError."""
        return self.stored() if self.folder.local else self.folder.open(self.name)


def check_expansion(packed: int, unpacked: int) -> None:
    """Raises OSError for data that unpacks to far more than prompts do."""
    if unpacked > max(_UNPACKED_FREELY, _MOST_EXPANSION * packed):
        raise OSError(f"it unpacks to more than {_MOST_EXPANSION} times its size, as no prompts do")


class _Unpacked(gzip.GzipFile):
    """What gzip compressed, unpacked and bounded as it is read; closes what it reads."""

    def __init__(self, stored: Any):
        super().__init__(fileobj=stored, mode="rb")
        self._stored = stored
        self._unpacked = 0

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, found: bytes) -> bytes:
        self._unpacked += len(found)
        check_expansion(self._stored.tell(), self._unpacked)
        return found

    def close(self) -> None:
        super().close()
        self._stored.close()


def _reason(error: OSError) -> str:
    return one_line(without_credentials(error.strerror or str(error)))
