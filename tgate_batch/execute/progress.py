"""Shows the progress of a run: live bars in a terminal, else a log line every few seconds."""

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
_MOST_ARMS = 8  # with a bar, or a count in a line
_WINDOW = 60.0  # seconds over which a rate is averaged

ArmKey = tuple[str, str]  # model, arm


class Rate:
    """Images per second over the last minute."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, images: int) -> None:
        self._counts.append((time.monotonic(), images))

    def now(self) -> float:
        """Returns the rate; 0 before the first image."""
        now = time.monotonic()
        while self._counts and now - self._counts[0][0] > _WINDOW:
            self._counts.popleft()
        seconds = min(_WINDOW, now - self._since)
        return sum(images for _, images in self._counts) / max(seconds, 1e-9)


class _Bars(Progress):
    """A bar for each arm, and below them a line that is wrapped, not cut."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.note)


class RunProgress:
    """Counts rendered images per (model, arm) and shows them. A context manager."""

    def __init__(self, totals: Mapping[ArmKey, int], done: Mapping[ArmKey, int]):
        """``totals``: the images of each arm; ``done``: how many were finished before this run."""
        self._totals = dict(totals)
        self._done = dict(done)
        self._unwritten: dict[tuple[str, str, int], int] = {}  # of shards without a file yet
        self._errors = 0
        self._rate = Rate()
        self._any_new = False
        self._last = time.monotonic()
        self._waits_for = ""
        self._bars: _Bars | None = None
        self._stack = ExitStack()  # prints other lines above the bars
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
            self._all = self._bars.add_task("all", total=sum(self._totals.values()))
            for key, total in self._shown().items():
                self._rows[key] = self._bars.add_task(" ".join(key), total=total)
            self._bars.start()
            self._refresh()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._refresh()
            self._bars.stop()
            self._stack.close()
        elif self._any_new:
            self._print_line()

    def add_progress(self, progress: ShardProgress) -> None:
        """Counts images of a shard whose file is not written yet."""
        shard = (progress.model, progress.arm, progress.shard)
        self._unwritten[shard] = self._unwritten.get(shard, 0) + progress.pictures
        self._count(progress.pictures)

    def add(self, result: ShardResult) -> None:
        """Counts a finished (model, arm, shard)."""
        key, images = (result.model, result.arm), result.images + result.errors
        counted = self._unwritten.pop((*key, result.shard), 0)
        self._done[key] = self._done.get(key, 0) + images
        self._errors += result.errors
        self._count(max(0, images - counted))

    def tick(self, waits_for: str = "") -> None:
        """Refreshes what is shown; called regularly. ``waits_for``: what the run waits for."""
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            if not waits_for and not self._any_new:
                self._rate = Rate()  # without the time of waiting
            if waits_for and self._bars is None:
                console.info(f"{waits_for} ...", event="phase")
                self._last = time.monotonic()
        if self._bars is not None:
            self._refresh()
        elif self._any_new and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _count(self, images: int) -> None:
        self._rate.add(images)
        self._any_new = True
        self.tick()

    def _rendered(self, key: ArmKey) -> int:
        unwritten = sum(n for (*arm, _), n in self._unwritten.items() if tuple(arm) == key)
        return min(self._totals[key], self._done.get(key, 0) + unwritten)

    def _refresh(self) -> None:
        assert self._bars is not None
        counts = {key: self._rendered(key) for key in self._totals}
        for key, row in self._rows.items():
            self._bars.update(row, completed=counts[key])
        done = sum(counts.values())
        self._bars.note = self._note(done) if self._any_new else self._waits_for
        self._bars.update(self._all, completed=done)

    def _note(self, done: int) -> str:
        rate, errors = self._rate.now(), f", {self._errors:,} errors" if self._errors else ""
        idle = "waiting" if self._waits_for else "stalled"
        left = duration((sum(self._totals.values()) - done) / rate) + " left" if rate else idle
        return f"{rate:.2f} images/s, {left}{errors}"

    def _shown(self) -> Mapping[ArmKey, int]:
        """Returns the arms that are shown by name; none if there are many."""
        return self._totals if len(self._totals) <= _MOST_ARMS else {}

    def _print_line(self) -> None:
        self._last = time.monotonic()
        counts = {key: self._rendered(key) for key in self._totals}
        done, total = sum(counts.values()), sum(self._totals.values())
        arms = [f"{key[1]} {counts[key]:,}/{most:,}" for key, most in self._shown().items()]
        detail = ", ".join(arms) or f"{len(counts)} arms"
        console.info(
            f"{done:,}/{total:,} images, {self._note(done)} ({detail})",
            event="progress",
            done=done,
            total=total,
            errors=self._errors,
            images_per_second=round(self._rate.now(), 3),
            arms={" ".join(key): n for key, n in counts.items()},
        )


class WorkCounter:
    """Counts pieces of work that have no bar; logs a line every few seconds."""

    def __init__(self, what: str, pieces: str, total: int, done: int = 0):
        """``pieces``: the name of the pieces; ``done`` of them were finished before."""
        self._what, self._pieces, self._total, self._done = what, pieces, total, done
        self._last, self._logged = time.monotonic(), -1

    def add(self, pieces: int = 1) -> None:
        """Counts finished pieces."""
        self._done += pieces
        self.tick()

    def tick(self) -> None:
        """Logs a line if it is time; called regularly."""
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self.log()

    def log(self) -> None:
        """Logs a line now, unless nothing changed since the last one."""
        if self._done == self._logged:
            return
        self._last, self._logged = time.monotonic(), self._done
        console.info(
            f"{self._what}: {self._done:,} of {self._total:,} {self._pieces}",
            event="progress",
            what=self._what,
            done=self._done,
            total=self._total,
        )


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
