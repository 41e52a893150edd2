"""Says how far a run is: live lines in a terminal, a plain one every few seconds elsewhere."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from rich.console import Console, RenderableType
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from tgate_batch import console
from tgate_batch.records import ShardProgress, ShardResult

_SECONDS_BETWEEN_LINES = 5.0
_MOST_ARMS = 8  # that have a bar, or a count in a line
_WINDOW = 60.0  # seconds over which a rate is taken

ArmKey = tuple[str, str]  # model, arm


class Rate:
    """Pictures a second over the last minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, pictures: int) -> None:
        self._counts.append((time.monotonic(), pictures))

    def now(self) -> float:
        """0 before the first picture."""
        now = time.monotonic()
        while self._counts and now - self._counts[0][0] > _WINDOW:
            self._counts.popleft()
        seconds = min(_WINDOW, now - self._since)
        return sum(pictures for _, pictures in self._counts) / max(seconds, 1e-9)


class _Bars(Progress):
    """A bar an arm, and below them a line that never loses its end."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.note)


class RunProgress:
    """Counts pictures per (model, arm), as they are drawn. A context manager."""

    def __init__(self, totals: Mapping[ArmKey, int], done: Mapping[ArmKey, int]):
        """``totals`` pictures an arm, of which ``done`` stood finished before this run."""
        self._totals = dict(totals)
        self._done = dict(done)
        self._drawing: dict[tuple[str, str, int], int] = {}  # of shards whose file is not there yet
        self._errors = 0
        self._rate = Rate()
        self._drawn = False
        self._last = time.monotonic()
        self._waits_for = ""
        self._bars: _Bars | None = None
        self._stack = ExitStack()  # while bars are there, other lines go above them
        self._rows: dict[ArmKey, TaskID] = {}

    def __enter__(self) -> "RunProgress":
        screen = Console(file=console.out(), width=console.width(console.out()))
        if screen.is_terminal and not console.is_json():
            self._bars = _Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:,}/{task.total:,}"),
                console=screen,
                redirect_stdout=not console.is_alone(),
                redirect_stderr=not console.is_alone(),
            )
            above = (FileProxy(screen, stream) for stream in (console.out(), console.err()))
            self._stack.enter_context(console.to(*above))
            self._whole = self._bars.add_task("all", total=sum(self._totals.values()))
            for key, total in self._shown().items():
                self._rows[key] = self._bars.add_task(" ".join(key), total=total)
            self._bars.start()
            self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._draw()
            self._bars.stop()
            self._stack.close()
        elif self._drawn:
            self._print_line()

    def drawn(self, beat: ShardProgress) -> None:
        """Takes pictures of a shard into account whose file is still to come."""
        place = (beat.model, beat.arm, beat.shard)
        self._drawing[place] = self._drawing.get(place, 0) + beat.pictures
        self._count(beat.pictures)

    def add(self, receipt: ShardResult) -> None:
        """Takes one finished (model, arm, shard) into account."""
        key, pictures = (receipt.model, receipt.arm), receipt.images + receipt.errors
        before = self._drawing.pop((*key, receipt.shard), 0)
        self._done[key] = self._done.get(key, 0) + pictures
        self._errors += receipt.errors
        self._count(max(0, pictures - before))

    def tick(self, waits_for: str = "") -> None:
        """Called now and then, also when nothing has come in; ``waits_for``: what is to come."""
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            if not waits_for and not self._drawn:
                self._rate = Rate()  # what was waited for is no part of it
            if waits_for and self._bars is None:
                console.info(f"{waits_for} ...", event="phase")
                self._last = time.monotonic()
        if self._bars is not None:
            self._draw()
        elif self._drawn and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _count(self, pictures: int) -> None:
        self._rate.add(pictures)
        self._drawn = True
        self.tick()

    def _of(self, key: ArmKey) -> int:
        being_drawn = (n for (*arm, _), n in self._drawing.items() if tuple(arm) == key)
        return min(self._totals[key], self._done.get(key, 0) + sum(being_drawn))

    def _draw(self) -> None:
        assert self._bars is not None
        counts = {key: self._of(key) for key in self._totals}
        for key, row in self._rows.items():
            self._bars.update(row, completed=counts[key])
        done = sum(counts.values())
        self._bars.note = self._note(done) if self._drawn else self._waits_for
        self._bars.update(self._whole, completed=done)

    def _note(self, done: int) -> str:
        rate, errors = self._rate.now(), f", {self._errors:,} errors" if self._errors else ""
        idle = "waiting" if self._waits_for else "stalled"
        left = duration((sum(self._totals.values()) - done) / rate) + " left" if rate else idle
        return f"{rate:.2f} images/s, {left}{errors}"

    def _shown(self) -> Mapping[ArmKey, int]:
        """The arms that are shown by name: none if there are many."""
        return self._totals if len(self._totals) <= _MOST_ARMS else {}

    def _print_line(self) -> None:
        self._last = time.monotonic()
        counts = {key: self._of(key) for key in self._totals}
        done, total = sum(counts.values()), sum(self._totals.values())
        arms = [f"{key[1]} {counts[key]:,}/{most:,}" for key, most in self._shown().items()]
        told = ", ".join(arms) or f"{len(counts)} arms"
        console.info(
            f"{done:,}/{total:,} images, {self._note(done)} ({told})",
            event="progress",
            done=done,
            total=total,
            errors=self._errors,
            images_per_second=round(self._rate.now(), 3),
            arms={" ".join(key): n for key, n in counts.items()},
        )


class WorkCounter:
    """Counts pieces of work that have no bar; a line every few seconds, and one at the end."""

    def __init__(self, what: str, of: str, total: int, done: int = 0):
        """``of`` names the pieces; ``done`` of them stood finished before."""
        self._what, self._of, self._total, self._done = what, of, total, done
        self._last, self._said = time.monotonic(), -1

    def add(self, pieces: int = 1) -> None:
        """Takes some more into account."""
        self._done += pieces
        self.tick()

    def tick(self) -> None:
        """Called now and then, also when nothing has come in."""
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        """Says the line now, unless the last one said the same."""
        if self._done == self._said:
            return
        self._last, self._said = time.monotonic(), self._done
        console.info(
            f"{self._what}: {self._done:,} of {self._total:,} {self._of}",
            event="progress",
            what=self._what,
            done=self._done,
            total=self._total,
        )


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they have."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
