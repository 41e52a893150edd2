"""The ledger: what each folder of an output was made of, setting by setting (``made_of.json``).

An entry is written before its folder's first file and is never dropped, so an arm that left the
config and comes back with other settings is recognised. Replacing a folder's content sets the
entry to null, deletes the files, and writes the new entry. A run that finds a null entry goes on
with the deleting, so that a crash in between does no harm.
"""

import json
from collections.abc import Mapping
from typing import Any

from tgate_batch import __version__
from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.output import layout, seal, shapes
from tgate_batch.output.layout import Settings
from tgate_batch.storage import Folder


class Provenance:
    """The entries of one output folder. One driver at a time writes them."""

    def __init__(self, folder: Folder):
        """Reads ``made_of.json``; an output without one has no entries.

        Raises UserError where the file cannot be read or is of another format.
        """
        self._folder = folder
        self._entries: dict[str, Settings | None] = {}
        content = shapes.read_json(folder, layout.LEDGER)
        if content is not None:
            check_format(folder, content)
            self._entries = shapes.read(folder, layout.LEDGER, shapes.LedgerFile)["folders"]

    def __getitem__(self, name: str) -> Settings:
        """What a folder's files are made of. Raises KeyError for a folder without an entry."""
        entry = self._entries[name]
        if entry is None:
            raise KeyError(name)
        return entry

    def __contains__(self, name: str) -> bool:
        return self._entries.get(name) is not None

    def differences(self, name: str, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Setting -> (the ledger's value, the given one), where the two differ.

        A setting that one of the two does not name is None there. A folder without an entry
        differs in nothing.
        """
        before = self._entries.get(name)
        if before is None:
            return {}
        keys = dict.fromkeys((*settings, *before))
        pairs = {key: (before.get(key), settings.get(key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def enter(self, name: str, settings: Settings) -> None:
        """Writes a folder's entry, if it has none. Clears the folder first where that is due."""
        if name in self:
            return
        if name in self._entries:
            self._folder.delete_all(name)
        self._entries[name] = dict(settings)
        self._write()

    def record(self, name: str, settings: Settings) -> None:
        """Writes a folder's entry over the one it has; for what is no reason to clear it."""
        self._entries[name] = dict(settings)
        self._write()

    def clear(self, *names: str) -> None:
        """Sets the entries to null, then deletes what the folders hold."""
        self._entries |= dict.fromkeys(names)
        self._write()
        for name in names:
            self._folder.delete_all(name)

    def finish_clearing(self) -> None:
        """Deletes what folders with a null entry still hold."""
        for name, entry in self._entries.items():
            if entry is None:
                self._folder.delete_all(name)

    def write_again(self) -> None:
        """Writes the entries as they are, under a seal that is theirs."""
        self._write()

    def is_current(self) -> bool:
        """Whether the file still says what was read from it."""
        return Provenance(self._folder)._entries == self._entries

    def is_cleared(self, name: str) -> bool:
        """Whether a folder's content is to go, or going."""
        return name in self._entries and self._entries[name] is None

    def names(self) -> list[str]:
        """The folders that have an entry, null ones too."""
        return list(self._entries)

    def _write(self) -> None:
        content = {
            "format": layout.FORMAT,
            "version": __version__,
            "folders": self._entries,
        }
        self._folder.write(layout.LEDGER, json.dumps(seal.with_seal(content), indent=1))


def check_format(folder: Folder, content: Any) -> None:
    """Raises UserError unless the content of a JSON file of the output has this format."""
    said = content if isinstance(content, dict) else {}
    found = said.get("format", 1)
    if found in layout.READABLE:
        return
    known = " and ".join(map(str, layout.READABLE))
    about = (
        f"output {folder} has format {shown(found)}, and tgate-batch {__version__} reads {known}"
    )
    if isinstance(found, int) and found > layout.FORMAT:
        version = one_line(said.get("version", "newer than this one"), 40)
        raise UserError(f"{about}. Fix: install tgate-batch {version}, which wrote it")
    raise UserError(f"{about}. Fix: give another output, or read it with the version that wrote it")
