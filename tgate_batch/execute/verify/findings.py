"""The findings of a check of an output: counts of what was checked, and the faults."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec

from tgate_batch.errors import StorageError, message_of
from tgate_batch.output.layout import Settings

P = ParamSpec("P")
_SHOWN = 20
_NAMED = 3  # reasons of a file
UNREAD = "cannot be read"  # the first words of the reason of an unreadable file

DAMAGED = "damaged"  # a later run can make it again
STRAY = "stray"  # named like a file of a run, but not of this one
MISSING = "missing"
FOREIGN = "foreign"  # not named like a file of a run; it may be a user's
LOST = "lost"  # prompts, which can be restored from their source
KEPT = "kept"  # cannot be made again; its reason tells what to do

NAMES, ENTRIES, PROMPTS = "names in the folder", "ledger entries", "files of prompts"
IMAGES, ROWS, DECODED = "files of images", "rows", "images decoded"
MEASURED, SUMS, JSONS = "files of measurements", "sums and statistics", "scores, report and notes"
_ORDER = (NAMES, ENTRIES, PROMPTS, IMAGES, ROWS, DECODED, MEASURED, SUMS, JSONS)


@dataclass(frozen=True)
class Fault:
    """One fault of an output.

    ``what``: a row of the table. ``entry``: a wrong entry of the ledger, and its right settings
    (None if they are not known).
    """

    what: str
    kind: str
    name: str
    reason: str
    entry: tuple[str, Settings | None] | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.reason}"


@dataclass
class Findings:
    """What was checked, how many of each, and the faults."""

    checked: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    without_digests: int = 0  # files of images of an earlier version

    def add(self, what: str, name: str, reasons: list[str], kind: str = DAMAGED) -> None:
        """Counts a checked file; reasons make it a fault."""
        self.checked[what] += 1
        if reasons:
            self.faults.append(Fault(what, kind, name, join_reasons(reasons)))

    def sort(self) -> None:
        """Sorts the faults by table row and name; prompts first, as the others depend on them."""
        self.faults.sort(
            key=lambda fault: (fault.what != PROMPTS, _ORDER.index(fault.what), fault.name)
        )

    def merge(self, other: "Findings") -> None:
        self.checked += other.checked
        self.faults += other.faults
        self.without_digests += other.without_digests

    def lines(self) -> Iterator[str]:
        """Yields the table, the first faults, and a verdict."""
        by_row = Counter(fault.what for fault in self.faults)
        width = max(map(len, _ORDER))
        yield f"{'checked':<{width}}  {'how many':>10}  {'faults':>7}"
        for what in _ORDER:
            yield f"{what:<{width}}  {self.checked[what]:>10,}  {by_row[what]:>7,}"
        yield from map(str, self.faults[:_SHOWN])
        if len(self.faults) > _SHOWN:
            yield f"and {len(self.faults) - _SHOWN:,} more"
        if self.without_digests:
            yield (
                f"{self.without_digests:,} files of images are older than 0.2.0, without digests: "
                "images exchanged between their rows are not detected"
            )
        yield self._verdict()

    def _verdict(self) -> str:
        if not self.faults:
            return "ok: every file matches the ledger and the prompts"
        kinds = Counter(fault.kind for fault in self.faults)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        advice = []
        if kinds[LOST]:
            advice.append("--repair restores prompts from the file that they were read from")
        if kinds[MISSING]:
            advice.append("tgate-batch render makes what is missing")
        if kinds[DAMAGED] or kinds[STRAY]:
            advice.append(
                "--repair removes what is damaged or stray, then tgate-batch render makes it again"
            )
        return "; ".join([f"not ok: {counts}", *advice])


def join_reasons(reasons: list[str]) -> str:
    """Joins reasons into one line; only the first ones are named."""
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return "; ".join(reasons[:_NAMED]) + more


def guarded(check: Callable[P, list[str]]) -> Callable[P, list[str]]:
    """Decorates a check that returns reasons; an exception from damaged bytes is one too.

    Decoders of Parquet, zip and JSON raise errors without a common base class. Raises StorageError
    if an object store fails, because that concerns every other file too.
    """

    @wraps(check)
    def guarded_check(*args: P.args, **kwargs: P.kwargs) -> list[str]:
        try:
            return check(*args, **kwargs)
        except Exception as error:
            if isinstance(error, StorageError) and error.store:
                raise
            return [f"{UNREAD}: {message_of(error, 300)}"]

    return guarded_check
