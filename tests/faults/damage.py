"""Files of a finished run are damaged: told, repaired, and made again equal to what they were."""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from world import ARMS, World, refused_or_done

from tgate_batch import workflow
from tgate_batch.config import Config
from tgate_batch.execute.verify import verify
from tgate_batch.output import layout

Harm = Callable[[Path, random.Random], None]


def truncated(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def zeroed(file: Path, rng: random.Random) -> None:
    """The last part of a file never reached the disk."""
    content = file.read_bytes()
    kept = rng.randrange(len(content))
    file.write_bytes(content[:kept].ljust(len(content), b"\0"))


def removed(file: Path, rng: random.Random) -> None:
    file.unlink()


# What a run makes again by itself or after `verify --repair`, by the folder it is in.
MADE_AGAIN = {
    "pictures": f"{layout.IMAGES}/**/*.parquet",
    "measurements": f"{layout.MEASURED}/**/*.parquet",
    "sums": f"{layout.SUMS}/**/*.npz",
    "scores": "scores/demo/*.json",
    "the report": "report/*",
    "the card": layout.CARD,
}
# What only the person has: named in one line, and nothing is touched.
KEPT = {
    "the frozen prompts": f"{layout.PROMPTS}/*.parquet",
    "the ledger": layout.LEDGER,
    "the run's config": layout.RUN,
}


def made_again(world: World, rng: random.Random, pattern: str, harm: Harm) -> None:
    run, before = finished(world)
    harm(rng.choice(matches(run, pattern)), rng)
    workflow.verify(run.output, repair=True)
    world.render(run)
    world.check(run)
    assert rows_of_scores(run) == before
    assert verify(run.output)[0].faults == []


def kept(world: World, rng: random.Random, pattern: str, harm: Harm) -> None:
    run, _ = finished(world)
    file = rng.choice(matches(run, pattern))
    whole = file.read_bytes()
    harm(file, rng)
    if file.exists() and file.read_bytes() == whole:
        return
    pictures = {path: path.read_bytes() for path in matches(run, MADE_AGAIN["pictures"])}
    if refused_or_done(world, run) != "0":
        assert {path: path.read_bytes() for path in pictures} == pictures
        file.write_bytes(whole)
        assert world.render(run) == workflow.DONE
    world.check(run)


def finished(world: World) -> tuple[Config, dict[str, int]]:
    """A copy of an undisturbed run, and how many pictures its scores count."""
    run = world.config()
    shutil.copytree(world.whole.output, run.output)
    return run, rows_of_scores(run)


def planted(world: World, rng: random.Random, file: str, content: str) -> None:
    """A list of somebody else names a file outside: a repair leaves it, and the run goes on."""
    run, _ = finished(world)
    victim = world.place / "victim" / f"{rng.randrange(10**9)}.parquet"
    victim.parent.mkdir(exist_ok=True)
    victim.write_text("years of work")
    names = (str(victim), f"../victim/{victim.name}", f"images/../../victim/{victim.name}")
    (Path(run.output) / file).write_text(content.replace("NAME", rng.choice(names)))
    workflow.verify(run.output, repair=True)
    refused_or_done(world, run)
    assert victim.read_text() == "years of work"
    if file == layout.DAMAGED:
        world.check(run)


def matches(run: Config, pattern: str) -> list[Path]:
    return sorted(path for path in Path(run.output).glob(pattern) if path.is_file())


def rows_of_scores(run: Config) -> dict[str, int]:
    files = {arm: Path(run.output) / layout.scores("demo", arm) for arm in ARMS}
    return {arm: json.loads(file.read_text())["images"] for arm, file in files.items()}


ROUNDS = {
    f"{what}: {harm.__name__}": (partial(one, pattern=pattern, harm=harm), times)
    for patterns, one, times in ((MADE_AGAIN, made_again, 2), (KEPT, kept, 2))
    for what, pattern in patterns.items()
    for harm in (truncated, zeroed, removed)
} | {
    f"planted: {file}": (partial(planted, file=file, content=content), 3)
    for file, content in (
        (layout.DAMAGED, '{"NAME": "a page is damaged"}'),
        (layout.LEDGER, f'{{"format": {layout.FORMAT}, "folders": {{"NAME": null}}}}'),
    )
}
