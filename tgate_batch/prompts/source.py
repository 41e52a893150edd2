"""Opens a file that a user names, on a disk or in an object store."""

import gzip
import os
import stat
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tgate_batch import demo
from tgate_batch.errors import UserError, one_line, os_reason, shown
from tgate_batch.storage import Folder, without_credentials

_READ_AT_ONCE = 16 << 20  # bytes of a request to a store
NO_NAME = "contains a character that no file's name may have"
_PACKED = ".gz"
_UNPACKED_FREELY = 64 << 20  # bytes
_MOST_EXPANSION = 200  # times; gzip reaches 1,032, and very similar texts reach 100


@dataclass(frozen=True)
class PromptFile:
    """A file: its folder and its name there; its text is the user's, without secrets."""

    written: str
    folder: Folder
    name: str
    member: str = ""  # of a file in a folder or pattern: its name there, without suffix

    @classmethod
    def of(cls, path: str) -> "PromptFile":
        """Returns the file of a path, a ``~`` path or a URI; ``demo``: the embedded captions.

        Raises UserError for an invalid name or URI.

        Example::

            PromptFile.of("prompts.csv.gz").suffix  # ".csv"
        """
        if path == "demo":
            return cls(path, *Folder.of_file(str(demo.PROMPTS)))
        try:
            return cls(path, *Folder.of_file(path if "://" in path else os.path.expanduser(path)))
        except UserError:
            raise
        except ValueError:  # NUL, or text that no file system can represent
            raise UserError(f"{shown(without_credentials(path))} {NO_NAME}") from None

    def as_member(self, name: str) -> "PromptFile":
        """Returns this file with its name in a folder or pattern."""
        plain = name[: -len(_PACKED)] if name.lower().endswith(_PACKED) else name
        return replace(self, member=os.path.splitext(plain)[0])

    def __str__(self) -> str:
        return one_line(without_credentials(self.written))

    @property
    def packed(self) -> bool:
        """True for a gzip file, by its name."""
        return self.name.lower().endswith(_PACKED)

    @property
    def suffix(self) -> str:
        """The suffix in lower case; of a compressed file, the one before ``.gz``."""
        name = self.name.lower()
        return os.path.splitext(name.removesuffix(_PACKED))[1] or os.path.splitext(name)[1]

    @property
    def has_loose_rows(self) -> bool:
        """True if each row names its columns, so that later rows may have additional ones."""
        return self.suffix in (".json", ".jsonl", ".txt")

    @property
    def location(self) -> str:
        """The full path of its folder, without secrets and without a URI's options."""
        where = str(self.folder)
        return one_line((where.split("?", 1)[0] if "://" in where else where).rstrip("/"))

    def fault(self) -> str | None:
        """Returns why it cannot be read ("does not exist", ...); None if it can be opened."""
        try:
            if not self.folder.local:
                return None if self.name and self.folder.exists(self.name) else self._missing()
            mode = os.stat(self.folder.path(self.name)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return self._missing()
        except OSError as error:
            return f"cannot be read: {one_line(without_credentials(os_reason(error)))}"
        except ValueError:  # NUL, or text that no file system can represent
            return NO_NAME
        if stat.S_ISDIR(mode):
            return "is a folder, not a file"
        return None if stat.S_ISREG(mode) else "is not a regular file. Fix: copy its content to one"

    def _missing(self) -> str:
        return f"does not exist (looked in {self.location})"

    def open(self) -> Any:
        """Opens a binary stream of its decompressed content; raises OSError, also on reading."""
        return _Unpacked(self.stored()) if self.packed else self.stored()

    def stored(self) -> Any:
        """Opens a binary stream of its bytes, for sequential reading; raises OSError."""
        if self.folder.local:
            return open(self.folder.path(self.name), "rb")
        return pa.BufferedInputStream(self.folder.open(self.name), _READ_AT_ONCE)

    def open_anywhere(self) -> Any:
        """Opens it as a binary file for random reading; raises OSError."""
        return self.stored() if self.folder.local else self.folder.open(self.name)


def check_expansion(packed: int, unpacked: int) -> None:
    """Raises OSError for data that decompresses to far more than prompts do."""
    if unpacked > max(_UNPACKED_FREELY, _MOST_EXPANSION * packed):
        raise OSError(f"it unpacks to more than {_MOST_EXPANSION} times its size, unlike prompts")


class _Unpacked(gzip.GzipFile):
    """The decompressed content of a gzip stream, with a limited size; closes the stream."""

    def __init__(self, stored: Any):
        super().__init__(fileobj=stored, mode="rb")
        self._stored = stored
        self._unpacked = 0

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, content: bytes) -> bytes:
        self._unpacked += len(content)
        check_expansion(self._stored.tell(), self._unpacked)
        return content

    def close(self) -> None:
        super().close()
        self._stored.close()
