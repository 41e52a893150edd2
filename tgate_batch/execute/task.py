"""Tasks and orders: a piece of work on its way, and what a worker is told to do with it.

A task remembers what went wrong: deaths of its worker, errors, and which of its prompts are to
blame. An order is the part of it that a worker needs. Neither knows Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tgate_batch.config import Model
from tgate_batch.errors import StorageError, UserError
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.records import ShardProgress
from tgate_batch.score.aggregate import SumOrder
from tgate_batch.score.conclusion import ConcludeOrder
from tgate_batch.score.measure import MeasureOrder
from tgate_batch.score.reference_file import ReferenceOrder

LIVES = 3  # failures that a task survives before it is split or given up
STORAGE_LIVES = 10  # with the pool's pauses some six minutes
MEMORY_LIVES = 10  # times that a worker alone on its machine may be ended for want of memory


def reason_of(error: BaseException) -> str:
    """Why a task failed, in a line: what a UserError says, or an exception's class and message."""
    text = " ".join(str(error).split())[:500]
    return (
        text if isinstance(error, UserError | StorageError) else f"{type(error).__name__}: {text}"
    )


@dataclass(frozen=True)
class RenderOrder:
    """What a worker is to render.

    ``identity`` is what the file's footer is to hold. ``quarantined``: positions of prompts that
    are not to be tried, with the reason. ``only``: a trial of these positions alone, which writes
    no file. ``errors_alone``: the file is there, and only its error rows are to be drawn.
    ``macs`` are those of a picture, as its file carries them; None: the worker counts them.
    ``checkpoint`` is the fingerprint that the worker's files have to have; None if it is not known.
    """

    model: Model
    shard: ShardPlan
    arm: str
    identity: str
    quarantined: Mapping[int, str]
    only: tuple[int, ...] | None = None
    errors_alone: bool = False
    macs: Mapping[str, int] | None = None
    checkpoint: str | None = None


@dataclass(eq=False)
class Task(ABC):
    """A piece of work that a worker may fail at. ``action``: the worker's method."""

    deaths: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    storage_errors: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)
    alone: bool = field(default=False, init=False)  # under suspicion: shares its worker with none
    avoid: set[str] = field(default_factory=set, init=False)  # workers that it failed on

    action = ""

    @abstractmethod
    def __str__(self) -> str:
        """What it is, for a message."""

    @abstractmethod
    def order(self) -> Any:
        """What the worker is told."""

    def delivered(self, piece: Any) -> bool:
        """The worker said something; returns whether it counts. All but a beat says: it is done."""
        self.done = not isinstance(piece, ShardProgress)
        return True

    def finished(self) -> bool:
        """The worker did what it was told; returns whether the task is over."""
        return True

    def worker_died(self, reason: str) -> bool:
        """The worker's process is gone; returns whether the task is to be tried again."""
        self.deaths += 1
        return self.deaths < LIVES

    def failed(self) -> bool:
        """The worker raised an error; returns whether the task is to be tried again."""
        self.errors += 1
        return self.errors < LIVES

    def storage_failed(self) -> bool:
        """The storage was away or full; returns whether the task is to be tried again."""
        self.storage_errors += 1
        return self.storage_errors < STORAGE_LIVES


@dataclass(eq=False)
class RenderTask(Task):
    """Renders a shard under one arm. Finds a prompt that kills its worker.

    After three deaths the shard is split into trials, ever smaller, until the prompt is found. It
    becomes a row with its error. The shard's other arms may share ``quarantined`` (by position), so
    that it kills no worker there. ``macs`` and ``checkpoint`` give the order's.
    """

    model: Model
    shard: ShardPlan
    arm: str
    identity: str
    quarantined: dict[int, str] = field(default_factory=dict)
    errors_alone: bool = False
    macs: Callable[[], Mapping[str, int] | None] = lambda: None
    checkpoint: str | None = None
    suspects: list[tuple[int, ...]] = field(default_factory=list, init=False)
    splits: int = field(default=0, init=False)

    action = "render"

    def __str__(self) -> str:
        return f"shard {self.shard.index} of {self.model.name} {self.arm}"

    @property
    def is_trial(self) -> bool:
        return bool(self.suspects)

    def order(self) -> RenderOrder:
        return RenderOrder(
            self.model,
            self.shard,
            self.arm,
            self.identity,
            dict(self.quarantined),
            self.suspects[-1] if self.is_trial else None,
            self.errors_alone,
            self.macs(),
            self.checkpoint,
        )

    def delivered(self, piece: Any) -> bool:
        return not self.is_trial and super().delivered(piece)

    def finished(self) -> bool:
        if not self.is_trial:
            return True
        self.suspects.pop()
        return False

    def worker_died(self, reason: str) -> bool:
        self.deaths += 1
        why = f"{reason}, each time on this prompt"
        if self.is_trial:
            self._bisect(self.suspects.pop(), why)
        elif self.deaths >= LIVES:
            self.deaths = 0
            self.splits += 1
            left = tuple(p for p in range(self.shard.prompts) if p not in self.quarantined)
            if self.splits == 1:
                self._bisect(left, why)
            else:  # no single prompt was to blame, and the worker dies all the same
                self.quarantined |= dict.fromkeys(left, why)
        return True

    def _bisect(self, positions: tuple[int, ...], why: str) -> None:
        if len(positions) == 1:
            self.quarantined[positions[0]] = why
        elif positions:
            half = len(positions) // 2
            self.suspects += [positions[half:], positions[:half]]


@dataclass(eq=False)
class MeasureTask(Task):
    """Measures the shard's pictures of all arms together."""

    model: Model
    wanted: MeasureOrder

    action = "measure"

    def __str__(self) -> str:
        return f"shard {self.wanted.shard.index} of {self.model.name}"

    def order(self) -> MeasureOrder:
        return self.wanted


@dataclass(eq=False)
class ReduceTask(Task):
    """Adds up a full chunk of an arm's measurements."""

    wanted: SumOrder

    action = "reduce"

    def __str__(self) -> str:
        source = self.wanted.source
        return f"the sums of {source.model} {source.arm}, part {self.wanted.chunk.index}"

    def order(self) -> SumOrder:
        return self.wanted


@dataclass(eq=False)
class ConcludeTask(Task):
    """Brings an arm's sums down to figures."""

    wanted: ConcludeOrder

    action = "conclude"

    def __str__(self) -> str:
        return f"the figures of {' '.join(self.wanted.key)}"

    def order(self) -> ConcludeOrder:
        return self.wanted


@dataclass(eq=False)
class ReferenceTask(Task):
    """Extracts the features of one part of a reference's pictures."""

    wanted: ReferenceOrder

    action = "reference"

    def __str__(self) -> str:
        return f"part {self.wanted.number} of reference {self.wanted.source}"

    def order(self) -> ReferenceOrder:
        return self.wanted
