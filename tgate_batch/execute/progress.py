"""Says how far a run is: a live bar in a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tgate_batch.records import Receipt

_SECONDS_BETWEEN_LINES = 5.0


class RunProgress:
    """Counts receipts per (model, arm). A context manager; prints to standard output."""

    def __init__(self, totals: Mapping[tuple[str, str], int], done: Mapping[tuple[str, str], int]):
        """``totals`` pictures an arm, of which ``done`` stood finished before this run."""
        self._totals = dict(totals)
        self._done = dict(done)
        self._errors = 0
        self._rendered = 0
        self._start = time.monotonic()
        self._last = self._start
        self._bars: Progress | None = None
        self._rows: dict = {}

    def __enter__(self) -> "RunProgress":
        if Console().is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} images"),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            for key, total in self._totals.items():
                self._rows[key] = self._bars.add_task(
                    " ".join(key), total=total, completed=self._done.get(key, 0), rate=""
                )
            self._bars.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif self._rendered:
            self._print_line()

    def add(self, receipt: Receipt) -> None:
        """Takes one finished (model, arm, shard) into account."""
        key = (receipt.model, receipt.arm)
        self._done[key] = self._done.get(key, 0) + receipt.images + receipt.errors
        self._rendered += receipt.images + receipt.errors
        self._errors += receipt.errors
        self.tick()

    def tick(self) -> None:
        """Called now and then, also when nothing has come in."""
        if self._bars is not None:
            for key, row in self._rows.items():
                self._bars.update(
                    row, completed=self._done.get(key, 0), rate=f"{self._rate():.2f} images/s"
                )
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def note(self, text: str) -> None:
        """A line of its own, above the bars where there are bars."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False)
        else:
            print(text, flush=True)

    def _rate(self) -> float:
        return self._rendered / max(time.monotonic() - self._start, 1e-9)

    def _print_line(self) -> None:
        self._last = time.monotonic()
        done, total = sum(self._done.values()), sum(self._totals.values())
        rate = self._rate()
        left = _duration((total - done) / rate) if rate else "unknown"
        arms = ", ".join(
            f"{arm} {self._done.get((model, arm), 0)}/{count}"
            for (model, arm), count in self._totals.items()
        )
        errors = f", {self._errors} errors" if self._errors else ""
        print(f"{done}/{total} images, {rate:.2f} images/s, {left} left{errors} ({arms})")
        sys.stdout.flush()


class PictureProgress:
    """Counts pictures; prints a line every few seconds, and one at the end."""

    def __init__(self, what: str, total: int, done: int):
        """``done`` pictures stood finished before."""
        self._what, self._total, self._done = what, total, done
        self._last, self._said = time.monotonic(), -1

    def add(self, pictures: int) -> None:
        """Takes some more pictures into account."""
        self._done += pictures
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        """Prints the line now, unless the last one said the same."""
        if self._done == self._said:
            return
        self._last, self._said = time.monotonic(), self._done
        print(f"{self._what}: {self._done:,} of {self._total:,} pictures", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
