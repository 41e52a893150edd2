"""What a check of an output finds: how many of each were checked, and each fault."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tgate_batch.errors import StorageError
from tgate_batch.output.layout import Settings

_SHOWN = 20
_NAMED = 3  # of a file's reasons
UNREAD = "cannot be read"  # how such a reason begins

DAMAGED = "damaged"  # can be made again
STRAY = "stray"  # ours by its name, and of nothing in this run
MISSING = "missing"
FOREIGN = "foreign"  # of no name that is ours; it may be a person's
LOST = "lost"  # prompts, which are written again from their source
KEPT = "kept"  # cannot be made again; its reason says what to do

NAMES, ENTRIES, PROMPTS = "names in the folder", "ledger entries", "files of prompts"
PICTURES, ROWS, DECODED = "files of pictures", "rows", "pictures decoded"
MEASURED, SUMS, JSONS = "files of measurements", "sums and statistics", "scores, report and notes"
_ORDER = (NAMES, ENTRIES, PROMPTS, PICTURES, ROWS, DECODED, MEASURED, SUMS, JSONS)


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be.

    ``what``: a row of the table. ``entry``: a ledger's entry that is wrong, and what it should be
    (None: not known).
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
    """What was checked, how many of each, and what is not as it should be."""

    checked: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    without_digests: int = 0  # files of images of an earlier version

    def add(self, what: str, name: str, reasons: list[str], kind: str = DAMAGED) -> None:
        """One more was checked; reasons make it a fault."""
        self.checked[what] += 1
        if reasons:
            self.faults.append(Fault(what, kind, name, join_reasons(reasons)))

    def sort(self) -> None:
        """Puts the faults in the order of the table, and of their names; but prompts first.

        Without them nothing else can be judged.
        """
        self.faults.sort(
            key=lambda fault: (fault.what != PROMPTS, _ORDER.index(fault.what), fault.name)
        )

    def merge(self, other: "Findings") -> None:
        self.checked += other.checked
        self.faults += other.faults
        self.without_digests += other.without_digests

    def lines(self) -> Iterator[str]:
        """The table, the first faults, and a verdict."""
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
                f"{self.without_digests:,} files of images have no digests: a version before 0.2.0 "
                "wrote them, and images exchanged between their rows are not found"
            )
        yield self._verdict()

    def _verdict(self) -> str:
        if not self.faults:
            return "sound: every file is what the ledger and the prompts demand"
        kinds = Counter(fault.kind for fault in self.faults)
        told = ", ".join(f"{kinds[kind]:,} {kind}" for kind in kinds)
        advice = []
        if kinds[LOST]:
            advice.append("--repair writes prompts again from the file that they were read from")
        if kinds[MISSING]:
            advice.append("tgate-batch render makes what is missing")
        if kinds[DAMAGED] or kinds[STRAY]:
            advice.append("--repair removes what is damaged or stray, and tgate-batch render then")
            advice[-1] += " makes it again"
        return "; ".join([f"not sound: {told}", *advice])


def join_reasons(reasons: list[str]) -> str:
    """Reasons in one line, the first of them named."""
    more = f"; and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return "; ".join(reasons[:_NAMED]) + more


def describe_error(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def guarded(check: Callable[[], list[str]]) -> list[str]:
    """A check's reasons; what reading damaged bytes raises is one too.

    Decoders of Parquet, zip and JSON raise errors without a common parent. Raises StorageError
    where an object store is in trouble: it would be so with every other file.
    """
    try:
        return check()
    except Exception as error:
        if isinstance(error, StorageError) and error.store:
            raise
        return [f"{UNREAD}: {describe_error(error)}"]
