"""One config into one output folder: what is frozen at the start, and what is still missing."""

import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tgate_batch.config import Arm, Config, Model, ResolvedSampling, Score
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import checkpoint
from tgate_batch.output import parquet
from tgate_batch.prompts import read as prompts
from tgate_batch.prompts.read import ShardPlan
from tgate_batch.records import Shard
from tgate_batch.storage import Folder

_PACKAGES = ("tgate-batch", "torch", "diffusers", "transformers", "DeepCache", "ray", "pyarrow")


@dataclass(frozen=True)
class Run:
    """A validated config, its output folder and its frozen shards."""

    config: Config
    folder: Folder
    shards: list[ShardPlan]

    @property
    def prompts(self) -> int:
        return sum(shard.prompts for shard in self.shards)

    @property
    def images_per_arm(self) -> int:
        return self.prompts * self.config.sampling.images_per_prompt

    def sampling(self, model: str) -> ResolvedSampling:
        return catalogue.resolve(model, self.config.sampling)

    def pairs(self) -> list[tuple[Model, str, Arm]]:
        """Every (model, arm name, arm) of the run, in the config's order."""
        return [
            (model, name, arm)
            for model in self.config.models
            for name, arm in self.config.arms.items()
        ]

    def done(self, model: str, arm: str) -> list[ShardPlan]:
        """The shards of an arm whose file stands."""
        return [shard for shard in self.shards if self.is_done(model, arm, shard)]

    def standing(self) -> dict[tuple[str, str], list[ShardPlan]]:
        """``done`` of every (model name, arm name): every file's footer is read, once."""
        return {(model.name, arm): self.done(model.name, arm) for model, arm, _ in self.pairs()}

    def is_done(self, model: str, arm: str, shard: ShardPlan) -> bool:
        rows = shard.prompts * self.config.sampling.images_per_prompt
        name = parquet.images_name(model, arm, shard.index)
        return parquet.is_done(self.folder, name, shard.digest, rows)


OpenArms = dict[str, dict[int, tuple[str, ...]]]  # model -> shard's index -> arms without a file


@dataclass(frozen=True)
class Missing:
    """Arms of one (model, shard) that have no valid file yet."""

    model: Model
    shard: Shard
    arms: tuple[str, ...]


def prepare(config: Config) -> Run:
    """Checks everything that can be checked without weights; writes nothing.

    Raises UserError for unknown models, plans that do not fit the steps, bad prompts, a place
    that cannot be written, and a folder that holds a run of other pictures.
    """
    for model in config.models:
        sampling = catalogue.resolve(model.name, config.sampling)
        checkpoint(model)
        for name, arm in config.arms.items():
            _check_arm(model.name, name, arm, sampling)
    _check_scored(config.score)
    folder = Folder(config.output)
    folder.check_writable()
    run = Run(config, folder, prompts.plan(config.prompts))
    _check_same_pictures(run)
    return run


def freeze(run: Run) -> None:
    """Writes ``run.json`` and ``shards.json``; clears what killed writers left.

    Raises UserError where the output cannot be written after all.
    """
    shards = [asdict(shard) for shard in run.shards]
    try:
        run.folder.clear_temporary()
        run.folder.write("shards.json", json.dumps({"shards": shards}, indent=1))
        run.folder.write("run.json", json.dumps(describe(run), indent=2))
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"output {run.folder} cannot be written: {reason}") from None


def describe(run: Run) -> dict[str, Any]:
    """What ``run.json`` holds: the config, what decides the pictures, and the versions."""
    return {
        "config": run.config.model_dump(mode="json"),
        "pictures": _pictures(run),
        "prompts": run.prompts,
        "shards": len(run.shards),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
        "git": _git_sha(),
    }


def opened(output: str) -> Run:
    """The run that an output folder holds, for scoring and reporting; reads no prompts.

    Raises UserError where the folder holds none.
    """
    folder = Folder(output)
    try:
        config = Config.model_validate(json.loads(folder.read("run.json"))["config"])
        shards = [ShardPlan(**shard) for shard in json.loads(folder.read("shards.json"))["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"output {output} holds no run: it has no readable run.json and shards.json; "
            "render it first with jobs/render.py"
        ) from None
    return Run(config.model_copy(update={"output": output}), folder, shards)


def open_arms(run: Run) -> OpenArms:
    """What has no valid file yet; reads every file's footer."""
    found: OpenArms = {}
    for model in run.config.models:
        found[model.name] = {}
        for shard in run.shards:
            arms = (arm for arm in run.config.arms if not run.is_done(model.name, arm, shard))
            if left := tuple(arms):
                found[model.name][shard.index] = left
    return found


def missing(run: Run, wanted: OpenArms) -> Iterator[Missing]:
    """Streams what has to be rendered, model after model, re-reading the prompts as it goes."""
    for model in run.config.models:
        arms = wanted[model.name]
        if not arms:
            continue
        for shard in prompts.shards(run.config.prompts):
            if shard.index in arms:
                yield Missing(model, shard, arms[shard.index])


def _check_arm(model: str, name: str, arm: Arm, sampling: ResolvedSampling) -> None:
    if arm.plan is None:
        return
    try:
        arm.plan.check(sampling.steps)
    except ValueError as error:
        raise UserError(f"arms.{name} with {model}: {error}") from None


def _check_scored(score: Score) -> None:
    """Files that scoring needs are missed before the rendering, not after it."""
    advice = {
        "reference": "give statistics (.npz), a folder of pictures, or leave it out for a run "
        "without distances",
        "extractor_path": "give the extractor's weights, or leave it out for where it keeps them",
        "lpips": "give AlexNet's weights, or leave it out",
    }
    for key, hint in advice.items():
        where = getattr(score, key)
        if where not in (None, "drawn") and "://" not in where and not Path(where).exists():
            raise UserError(f"score.{key}: {where} does not exist; {hint}")


def _pictures(run: Run) -> dict[str, Any]:
    """Everything that changes a picture, flat, so that a difference can be named.

    Batch size, workers, scoring and cost are not in it.
    """
    config = run.config
    known: dict[str, Any] = {
        "prompts": sha256("".join(shard.digest for shard in run.shards).encode()).hexdigest(),
        "prompts.shard_size": config.prompts.shard_size,
        "images.format": config.images.format,
    }
    for key in ("compile", "channels_last", "fused_qkv", "attention"):
        known[f"engine.{key}"] = getattr(config.engine, key)
    if config.images.format == "jpeg":
        known["images.quality"] = config.images.quality
    for model in config.models:
        sampling = run.sampling(model.name)
        known[f"models.{model.name}"] = [model.path, model.dtype]
        for key, value in sampling.model_dump(exclude={"batch_size"}).items():
            known[f"sampling.{key} ({model.name})"] = value
    for name, arm in config.arms.items():
        known[f"arms.{name}"] = arm.model_dump()
    return json.loads(json.dumps(known))


def _check_same_pictures(run: Run) -> None:
    """Arms and models may join a run or leave it; what it holds may not change under it."""
    if not run.folder.exists("run.json"):
        return
    try:
        before = json.loads(run.folder.read("run.json"))["pictures"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"output {run.folder} holds a run.json that cannot be read; give another output"
        ) from None
    now = _pictures(run)
    changed = [name for name in before if name in now and before[name] != now[name]]
    if changed:
        raise UserError(
            f"output {run.folder} holds a run with other settings of {', '.join(changed)}; "
            "its pictures would not match: give another output, or the settings it was begun with"
        )


def _git_sha() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
