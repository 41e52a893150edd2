"""A small run, its undisturbed output, and a check that another output equals it."""

import io
import os
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import painter
from painter import Mischief, Painter
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.config import Config, Model, Workers
from tgate_batch.errors import StorageError, UserError
from tgate_batch.execute import plugins
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.verify import verify
from tgate_batch.output import layout, parquet
from tgate_batch.storage import Folder

# fmt: off
WORDS = (
    "apple", "bread", "cloud", "drum", "eagle", "fork", "grass", "horse", "island", "jacket",
    "kettle", "lemon", "mirror", "needle", "onion", "pencil", "quilt", "river", "saddle",
    "table", "umbrella", "violin", "window", "yarn", "zebra",
)
# fmt: on
ARMS = ("baseline", "same")

Artist = Callable[[Model, Config], Any]


class Row(NamedTuple):
    """The status and content of one image."""

    status: str
    picture: bytes | None
    error_kind: str | None

    def __repr__(self) -> str:
        return self.error_kind or self.status


Rows = dict[tuple[str, str, int], Row]  # by arm, prompt, number


class World:
    """A folder for the rounds: 25 prompts, two images each, under two arms; 100 images.

    ``artist`` opens the pipeline; equal images may differ by ``levels`` of 255.
    """

    def __init__(self, place: Path, artist: Artist = Painter, levels: int = 0, **changes: Any):
        self.place = place
        self._artist, self._levels, self._changes = artist, levels, changes
        place.mkdir(exist_ok=True)
        plugins.register(["painter"])
        self._outputs = 0
        os.environ.setdefault(painter.VARIABLE, str(place / "mischief.json"))
        Mischief().request()
        self.prompts = place / "prompts.csv"
        self.write_prompts()
        self.undisturbed: Rows = {}
        self.whole = self.config()
        assert self.render(self.whole) == workflow.DONE
        self.undisturbed = rows(self.whole)
        assert len({row.picture for row in self.undisturbed.values()}) >= 50  # none is an error

    def write_prompts(self, words: Collection[str] = WORDS) -> None:
        lines = "".join(f"{word},the picture of a {word}\n" for word in words)
        self.prompts.write_text("id,caption\n" + lines)

    def config(self, **changes: Any) -> Config:
        """The run's config with another output; sections are changed key by key."""
        self._outputs += 1
        data: dict[str, Any] = {
            "models": ["demo"],
            "prompts": {"path": str(self.prompts), "shard_size": 8},
            "sampling": {"batch_size": 4, "images_per_prompt": 2},
            "arms": dict.fromkeys(ARMS),
            "workers": {"executor": "local"},
            "score": {"reference": None},
            "plugins": ["painter"],
            "max_errors": 0.5,
            "output": self.output(f"out-{self._outputs}"),
        }
        for key, value in {**self._changes, **changes}.items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        return config.parse(data)

    def output(self, name: str) -> str:
        """Returns the path of an output of this name."""
        return str(self.place / name)

    def render(self, settings: Config, mischief: Mischief | None = None, **options: Any) -> int:
        """Runs in this process; returns the exit code. Raises as ``workflow.render``."""
        (mischief or Mischief()).request()
        with drawing(self._artist):
            return self.judged(settings, workflow.render(settings, **options))

    def resume(self, settings: Config, **options: Any) -> None:
        """Reruns it undisturbed: it renders what is missing, and then the output is complete."""
        here = settings.model_copy(update={"workers": Workers(executor="local")})
        assert self.render(here, **options) == workflow.DONE
        self.check(settings)

    def judged(self, settings: Config, code: int) -> int:
        """Returns the exit code of a run; asserts that it is not 0 if anything is missing."""
        if code == workflow.DONE and self.undisturbed:
            assert rows(settings).keys() == self.undisturbed.keys(), "exit code 0, and rows missing"
        return code

    def check(self, settings: Config, failed: Collection[str] = ()) -> None:
        """Asserts that every row exists once and equals the undisturbed run's, or is an error.

        ``failed``: the prompts with errors. The whole output must be verified without a fault.
        """
        stored = rows(settings)
        assert stored.keys() == self.undisturbed.keys(), "rows are missing"
        for key, row in stored.items():
            if key[1] in failed:
                assert row.status == "error", f"{key} is {row.status}"
            else:
                assert self._is_alike(row, self.undisturbed[key]), f"{key} is another ({row})"
        assert Folder(settings.output).temporary() == []
        faults = verify(settings.output)[0].faults
        assert not faults, "; ".join(map(str, faults))

    def _is_alike(self, one: Row, other: Row) -> bool:
        if one == other or not self._levels or None in (one.picture, other.picture):
            return one == other
        apart = np.subtract(
            *(np.int16(Image.open(io.BytesIO(row.picture))) for row in (one, other))
        )
        return bool(abs(apart).max() <= self._levels)


@contextmanager
def drawing(artist: Artist = Painter) -> Iterator[None]:
    """Within the block, executors open the artist instead of any model."""

    def open_executor(
        settings: Config, folder: Any, first: Any = None, *callbacks: Any, **options: Any
    ) -> Any:
        from tgate_batch.execute.ray import RayExecutor

        executor = {"local": LocalExecutor, "ray": RayExecutor}[settings.workers.executor]
        names = ("on_workers_changed", "on_memory_kill")
        options |= dict(zip(names, callbacks, strict=False))
        return executor(settings, folder, first, open_runner=artist, **options)

    with mock.patch.object(workflow, "open_executor", open_executor):
        yield


def rows(settings: Config) -> Rows:
    """Returns the rows of an output; asserts that none occurs twice."""
    stored: Rows = {}
    folder = Folder(settings.output)
    for arm in settings.arms:
        for name in folder.names(layout.images("demo", arm), ".parquet"):
            for row in parquet.read_table(folder, name).to_pylist():
                key = (arm, row["prompt_id"], row["image_number"])
                assert key not in stored, f"{key} is there twice"
                picture = row["image"] and row["image"]["bytes"]
                stored[key] = Row(row["status"], picture, row["error_kind"])
    return stored


def some(rng: random.Random) -> str:
    return rng.choice(WORDS)


def refused_or_done(world: World, run: Config, mischief: Mischief | None = None) -> str:
    """Returns the one line of a run that is refused, else its exit code."""
    try:
        code = world.render(run, mischief)
    except (UserError, StorageError) as error:
        line = str(error)
        assert len(line.splitlines()) == 1, line
        return line
    return str(code)
