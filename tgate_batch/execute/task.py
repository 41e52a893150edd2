"""Tasks and orders: a unit of work, and the part of it that a worker needs.

A task counts its failures (deaths of its worker, errors) and finds the prompts that cause them. An
order is what is sent to a worker, whose method :meth:`Worker.execute` accepts every kind of order.
Neither depends on Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tgate_batch.config import Model
from tgate_batch.errors import StorageError, UserError, message_of
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.records import ShardProgress, ShardResult
from tgate_batch.score.aggregate import SumOrder
from tgate_batch.score.conclusion import ConcludeOrder, Conclusion
from tgate_batch.score.measure import Measured, MeasureOrder
from tgate_batch.score.reference_file import ReferenceOrder

LIVES = 3  # failures after which a task is split or given up
STORAGE_LIVES = 10  # storage errors after which it is given up: about six minutes of pauses
MEMORY_LIVES = 10  # times that Ray may end a worker that is alone on its machine


def reason_of(error: BaseException) -> str:
    """Returns why a task failed, in one line: the message, with its class unless a user's error."""
    text = message_of(error, 500)
    if isinstance(error, UserError | StorageError) or text == type(error).__name__:
        return text
    return f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class RenderOrder:
    """An order to render a shard under one arm.

    ``identity`` is written to the file's footer. ``quarantined``: positions of prompts to skip,
    with the reason. ``only``: a trial of these positions, which writes no file. ``errors_alone``:
    the file exists, and only its error rows are rendered. ``macs``: MACs of one image for the
    file's footer; None if the worker counts them. ``checkpoint``: the fingerprint that the
    worker's files must have; None if it is not known.
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


class ChunkSummed(NamedTuple):
    """A chunk's sums are written; ``damaged``: names of measurements that could not be read."""

    damaged: tuple[str, ...]


class PartExtracted(NamedTuple):
    """A part of a reference is written; ``images``: how many it holds."""

    images: int


Order = RenderOrder | MeasureOrder | SumOrder | ConcludeOrder | ReferenceOrder
Result = ShardProgress | ShardResult | Measured | ChunkSummed | Conclusion | PartExtracted


@dataclass(eq=False)
class Task(ABC):
    """A unit of work that a worker may fail at."""

    deaths: int = field(default=0, init=False)
    errors: int = field(default=0, init=False)
    storage_errors: int = field(default=0, init=False)
    done: bool = field(default=False, init=False)
    alone: bool = field(default=False, init=False)  # under suspicion: its worker gets no other task
    avoid: set[str] = field(default_factory=set, init=False)  # workers that it failed on

    @abstractmethod
    def __str__(self) -> str:
        """Returns the name of the work, for a message."""

    @abstractmethod
    def order(self) -> Order:
        """Returns the order that a worker gets."""

    def delivered(self, result: Result) -> bool:
        """Takes a worker's result; returns True if it counts. All but progress ends the task."""
        self.done = not isinstance(result, ShardProgress)
        return True

    def finished(self) -> bool:
        """Handles the end of the worker's call; returns True if the task is over."""
        return True

    def worker_died(self, reason: str) -> bool:
        """Handles the death of the worker's process; returns True if the task is retried."""
        self.deaths += 1
        return self.deaths < LIVES

    def failed(self) -> bool:
        """Handles an error in the worker; returns True if the task is retried."""
        self.errors += 1
        return self.errors < LIVES

    def storage_failed(self) -> bool:
        """Handles a storage outage; returns True if the task is retried."""
        self.storage_errors += 1
        return self.storage_errors < STORAGE_LIVES


@dataclass(eq=False)
class RenderTask(Task):
    """Renders a shard under one arm, and finds a prompt that kills its worker.

    After three deaths the shard is bisected into trials until that prompt is found; it becomes an
    error row. The shard's other arms may share ``quarantined`` (by position), so that the prompt
    kills no worker there. ``macs`` and ``checkpoint`` are passed to the order.
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

    def delivered(self, result: Result) -> bool:
        return not self.is_trial and super().delivered(result)

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
            else:  # no single prompt was the cause, and the worker dies again
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
    """Measures a shard's images of all arms together."""

    model: Model
    wanted: MeasureOrder

    def __str__(self) -> str:
        return f"shard {self.wanted.shard.index} of {self.model.name}"

    def order(self) -> MeasureOrder:
        return self.wanted


@dataclass(eq=False)
class SumTask(Task):
    """Sums a full chunk of an arm's measurements."""

    wanted: SumOrder

    def __str__(self) -> str:
        source = self.wanted.source
        return f"the sums of {source.model} {source.arm}, part {self.wanted.chunk.index}"

    def order(self) -> SumOrder:
        return self.wanted


@dataclass(eq=False)
class ConcludeTask(Task):
    """Computes an arm's figures from its sums."""

    wanted: ConcludeOrder

    def __str__(self) -> str:
        return f"the figures of {' '.join(self.wanted.key)}"

    def order(self) -> ConcludeOrder:
        return self.wanted


@dataclass(eq=False)
class ReferenceTask(Task):
    """Extracts the features of one part of a reference's images."""

    wanted: ReferenceOrder

    def __str__(self) -> str:
        return f"part {self.wanted.number} of reference {self.wanted.source}"

    def order(self) -> ReferenceOrder:
        return self.wanted
