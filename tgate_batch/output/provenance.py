"""The ledger (``made_of.json``): the settings of the files in each folder of an output.

An entry is written before its folder's first file and never removed, so that an arm that returns
to the config with other settings is recognized. To replace a folder's content, the entry is set to
null, the files are deleted, and the new entry is written. A run that reads a null entry continues
the deletion, so a crash in between does no harm.
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
    """The entries of an output folder; only the driver that owns the folder may change them.

    Example::

        Provenance(Folder("out/demo"))["images/demo/baseline"]["sampling.steps"]  # 20
    """

    def __init__(self, folder: Folder):
        """Reads ``made_of.json``; an output without one has no entries.

        Raises UserError if the file cannot be read or has another format.
        """
        self._folder = folder
        self._entries: dict[str, Settings | None] = {}
        content = shapes.read_json(folder, layout.LEDGER)
        if content is not None:
            check_format(folder, content)
            self._entries = shapes.read(folder, layout.LEDGER, shapes.LedgerFile)["folders"]

    def __getitem__(self, name: str) -> Settings:
        """Returns the settings of a folder's files; raises KeyError if it has no entry."""
        entry = self._entries[name]
        if entry is None:
            raise KeyError(name)
        return entry

    def __contains__(self, name: str) -> bool:
        return self._entries.get(name) is not None

    def differences(self, name: str, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Returns setting -> (ledger's value, given value) for all settings that differ.

        The value of a missing setting is None. A folder without an entry has no differences.
        """
        before = self._entries.get(name)
        if before is None:
            return {}
        keys = dict.fromkeys((*settings, *before))
        pairs = {key: (before.get(key), settings.get(key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    def enter(self, name: str, settings: Settings) -> None:
        """Writes a folder's entry, if it has none; finishes an unfinished deletion first."""
        if name in self:
            return
        if name in self._entries:
            self._folder.delete_all(name)
        self._entries[name] = dict(settings)
        self.write()

    def record(self, name: str, settings: Settings) -> None:
        """Overwrites a folder's entry without deleting its files."""
        self._entries[name] = dict(settings)
        self.write()

    def clear(self, *names: str) -> None:
        """Sets the entries to null, then deletes the folders' files."""
        self._entries |= dict.fromkeys(names)
        self.write()
        for name in names:
            self._folder.delete_all(name)

    def finish_clearing(self) -> None:
        """Deletes the remaining files of folders with a null entry."""
        for name, entry in self._entries.items():
            if entry is None:
                self._folder.delete_all(name)

    def is_current(self) -> bool:
        """Returns True if the file has not changed since it was read."""
        return Provenance(self._folder)._entries == self._entries

    def is_cleared(self, name: str) -> bool:
        """Returns True for a null entry: the folder's files are to be deleted."""
        return name in self._entries and self._entries[name] is None

    def names(self) -> list[str]:
        """Returns the folders that have an entry, including null."""
        return list(self._entries)

    def write(self) -> None:
        """Writes the entries, with a new seal."""
        content = {"format": layout.FORMAT, "version": __version__, "folders": self._entries}
        self._folder.write(layout.LEDGER, json.dumps(seal.with_seal(content), indent=1))


def check_format(folder: Folder, content: Any) -> None:
    """Raises UserError unless a JSON file of the output has a supported format."""
    keys = content if isinstance(content, dict) else {}
    number = keys.get("format", 1)
    if number in layout.READABLE:
        return
    known = " and ".join(map(str, layout.READABLE))
    about = (
        f"output {folder} has format {shown(number)}, and tgate-batch {__version__} reads {known}"
    )
    if isinstance(number, int) and number > layout.FORMAT:
        version = one_line(keys.get("version", "newer than this one"), 40)
        raise UserError(f"{about}. Fix: install tgate-batch {version}, which wrote it")
    raise UserError(f"{about}. Fix: give another output, or read it with the version that wrote it")
