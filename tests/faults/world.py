"""A small run, what it makes undisturbed, and whether another output holds just that."""

import os
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import painter
import pyarrow.parquet as pq
from painter import Mischief, Painter

from tgate_batch import config, workflow
from tgate_batch.config import Config
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.output import layout

# fmt: off
WORDS = (
    "apple", "bread", "cloud", "drum", "eagle", "fork", "grass", "horse", "island", "jacket",
    "kettle", "lemon", "mirror", "needle", "onion", "pencil", "quilt", "river", "saddle",
    "table", "umbrella", "violin", "window", "yarn", "zebra",
)
# fmt: on
ARMS = ("baseline", "same")

Rows = dict[
    tuple[str, str, int], tuple[str, bytes | None]
]  # (arm, prompt, number) -> status, bytes


class World:
    """A place for the rounds: 25 prompts, two pictures each, under two arms; 100 pictures."""

    def __init__(self, place: Path):
        self.place = place
        self._outputs = 0
        os.environ[painter.VARIABLE] = str(place / "mischief.json")
        Mischief().tell()
        self.prompts = place / "prompts.csv"
        self.write_prompts()
        whole = self.config()
        assert self.render(whole) == workflow.DONE
        self.undisturbed = rows(whole)
        assert len(self.undisturbed) == 100

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
            "output": str(self.place / f"out-{self._outputs}"),
        }
        for key, value in changes.items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) else value
        return config.parse(data)

    def render(self, settings: Config, mischief: Mischief | None = None, **options: Any) -> int:
        """A run whose pipeline is the painter; the exit code. Raises as ``workflow.render``."""
        (mischief or Mischief()).tell()
        with painting():
            return workflow.render(settings, **options)

    def check(self, settings: Config, failed: Collection[str] = ()) -> None:
        """Every row is there once and equals the undisturbed run's; these prompts' are errors."""
        found = rows(settings)
        assert found.keys() == self.undisturbed.keys(), "rows are missing"
        for key, (status, picture) in found.items():
            if key[1] in failed:
                assert status == "error", f"{key} is {status}"
            else:
                assert (status, picture) == self.undisturbed[key], f"{key} is another ({status})"
        left = [file.name for file in Path(settings.output).rglob("*tmp-*")]
        assert not left, f"temporary files are left: {left}"


@contextmanager
def painting() -> Iterator[None]:
    """Within it, executors open the painter in place of any model."""

    def local(settings: Config, folder: Any, first: Any = None, held: Any = print) -> LocalExecutor:
        return LocalExecutor(settings, folder, first, open_runner=Painter, held=held)

    def ray(settings: Config, folder: Any, first: Any = None, held: Any = print) -> Any:
        from tgate_batch.execute.ray import RayExecutor

        return RayExecutor(settings, folder, first, open_runner=Painter, held=held)

    def opened(settings: Config, *rest: Any, **options: Any) -> Any:
        return {"local": local, "ray": ray}[settings.workers.executor](settings, *rest, **options)

    with mock.patch.object(workflow, "open_executor", opened):
        yield


def rows(settings: Config) -> Rows:
    """What an output holds; no row twice."""
    found: Rows = {}
    for arm in ARMS:
        folder = Path(settings.output) / layout.images("demo", arm)
        for file in sorted(folder.glob("*.parquet")):
            for row in pq.read_table(file, page_checksum_verification=True).to_pylist():
                key = (arm, row["prompt_id"], row["image_number"])
                assert key not in found, f"{key} is there twice"
                found[key] = (row["status"], row["image"] and row["image"]["bytes"])
    return found


def some(rng: random.Random) -> str:
    return rng.choice(WORDS)
