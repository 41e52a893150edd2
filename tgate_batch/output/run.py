"""A run: a config and its output folder, what may be rendered there, and what is finished."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tgate_batch import __version__
from tgate_batch.config import Arm, Config, Model, ResolvedSampling, parse_plain
from tgate_batch.errors import Problems, UserError, os_reason
from tgate_batch.models import catalogue, checkpoint, schedulers
from tgate_batch.models.description import ModelDescription, describe_model, read_descriptions
from tgate_batch.models.fingerprint import fingerprint
from tgate_batch.models.resolve import mixes_guidance, resolve_model
from tgate_batch.output import card, layout, prompt_plan, prompt_store, seal, shapes, stale
from tgate_batch.output.compatibility import check_arm, check_generic_arm, check_rows
from tgate_batch.output.prompt_plan import PromptPlan, StalePrompts
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.provenance import Provenance, check_format
from tgate_batch.output.stale import ArmKey
from tgate_batch.prompts import reader as prompts
from tgate_batch.records import BatchKey
from tgate_batch.storage import Folder, without_credentials

Finished = dict[ArmKey, set[int]]  # (model, arm) -> the shards that have a file
Pending = dict[str, dict[int, tuple[str, ...]]]  # model -> shard -> the arms that lack a file


@dataclass(frozen=True)
class Run:
    """A validated config, its output folder, and the folder's shards and ledger.

    Example::

        run = load_run("out/demo")
        finished(run)["demo", "baseline"]  # {0, 1, 2}
    """

    config: Config
    folder: Folder
    shards: list[ShardPlan]
    ledger: Provenance
    models: Mapping[str, ModelDescription] = field(default_factory=dict, kw_only=True)  # by name

    @property
    def prompts(self) -> int:
        return sum(shard.prompts for shard in self.shards)

    @property
    def images_per_arm(self) -> int:
        return self.prompts * self.config.sampling.images_per_prompt

    def sampling(self, model: str) -> ResolvedSampling:
        """Returns a model's sampling settings; the catalogue's if an older output lacks them."""
        section = next((each for each in self.config.models if each.name == model), None)
        if section is not None and model in self.models:
            return self.models[model].under(section, self.config.sampling)
        return catalogue.resolve(model, self.config.sampling)

    @property
    def batch_keys(self) -> Counter[BatchKey]:
        """The number of prompts of each batch key."""
        prompts: Counter[BatchKey] = Counter()
        for shard in self.shards:
            prompts[shard.batch_key] += shard.prompts
        return prompts

    def pairs(self) -> list[tuple[Model, str, Arm]]:
        """Returns every (model, arm name, arm) of the run, in the config's order."""
        return [
            (model, name, arm)
            for model in self.config.models
            for name, arm in self.config.arms.items()
        ]

    def provenance_of(self, model: str, arm: str) -> layout.Settings:
        """Returns the settings of an arm's images; raises KeyError if it has none yet."""
        return self.ledger[layout.images(model, arm)]

    def promised_checkpoint(self, model: str, arm: str) -> str | None:
        """Returns the fingerprint of an arm's checkpoint; None if it is not known."""
        checkpoint = self.provenance_of(model, arm).get("checkpoint")
        return checkpoint if isinstance(checkpoint, str) else None

    def pictures(self, model: str, arm: str, shard: ShardPlan) -> tuple[str, str]:
        """Returns a shard's image file and its identity; raises as ``provenance_of`` does."""
        name = layout.shard_file(layout.images(model, arm), shard.index)
        return name, layout.file_identity(self.provenance_of(model, arm), shard.digest)


@dataclass(frozen=True)
class Prepared(Run):
    """A run that may be rendered.

    ``stale``: the folders of other settings, which it will replace. ``failed``: a message for each
    of them that has error rows only.
    """

    plan: PromptPlan
    stale: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    fingerprints: dict[str, str | None] = field(default_factory=dict)  # by model


def prepare(
    config: Config, replace_stale: bool = False, problems: Problems | None = None
) -> Prepared:
    """Checks everything that can be checked without loading a model. Writes nothing.

    ``problems``: those of earlier checks. All problems are raised together, except those that only
    a valid config can show.

    Raises UserError for missing models, plans that do not fit the steps, invalid prompts, an output
    that cannot be written, and images of other settings unless they are to be replaced. A folder
    without an image is replaced without asking.
    """
    problems = problems or Problems()
    models = {}
    for model in config.models:
        with problems.collected():
            sampling = checkpoint.check(model, config.sampling)
            models[model.name] = describe_model(model, sampling)
            problems.add(*schedulers.refusals(model, resolve_model(model), sampling, config.arms))
            for name, arm in config.arms.items():
                with problems.collected():
                    check_arm(model.name, name, arm, sampling)
                    check_generic_arm(model, name, arm)
                    if arm.scheduler is not None:
                        where = f"arms.{name}.scheduler with {model.name}"
                        schedulers.check_file(resolve_model(model), arm.scheduler, where)
    with problems.collected():
        folder = Folder(config.output)
        folder.check_writable()
        content = shapes.read_json(folder, layout.RUN)
        if content is not None:
            check_format(folder, content)
    if problems:
        with problems.collected():
            prompts.describe_columns(config.prompts, config.score.by)
    problems.raise_if_any()
    ledger = Provenance(folder)
    outdated: list[str] = []
    failed: list[str] = []
    apart = not all(mixes_guidance(model) for model in config.models)
    cutting = (config.score.by, prompts_a_batch(config), apart, config.sampling.given)
    try:
        plan = prompt_plan.plan_shards(folder, config.prompts, ledger, *cutting)
    except StalePrompts:
        errors = stale.count_errors(folder, folder.names(layout.IMAGES, ".parquet"))
        if errors is None and not replace_stale:
            raise
        outdated = ledger.names()
        failed = [stale.rerender_note(errors, "other prompts")] if errors else []
        plan = prompt_plan.plan_shards(folder, config.prompts, None, *cutting)
    check_rows(config, models, plan.shards)
    fingerprints = {
        model.name: fingerprint(model, _dtype(config, model)) for model in config.models
    }
    run = Prepared(
        config, folder, plan.shards, ledger, plan, fingerprints=fingerprints, models=models
    )
    settings = _settings(run)
    stale.check_provenance(
        folder, ledger, settings, {shard.index: shard.digest for shard in run.shards}
    )
    changed = stale.find_stale(ledger, settings)
    failed += stale.check_replaceable(folder, changed, replace_stale or bool(outdated))
    outdated += (layout.images(*key) for key in changed)
    return replace(run, stale=tuple(dict.fromkeys(outdated)), failed=tuple(failed))


def prompts_a_batch(config: Config) -> int:
    """Returns the smallest number of prompts whose images fill whole batches."""
    rows = config.sampling
    return rows.batch_size // math.gcd(rows.batch_size, rows.images_per_prompt)


def begin_run(run: Prepared) -> None:
    """Removes stale images and unfinished files; stores the config and the prompts.

    Raises UserError if the output cannot be written, or has changed since ``prepare``.
    """
    try:
        if not run.ledger.is_current():
            raise UserError(
                f"output {run.folder} was changed by another run. Fix: rerun the same command"
            )
        run.folder.clear_temporary()
        run.ledger.finish_clearing()
        if run.stale:
            run.ledger.clear(*run.stale)
        write_description(run)
        card.write(run.folder)
        prompt_plan.store_prompts(run.folder, run.config.prompts, run.plan, run.config.score.by)
        run.ledger.record(layout.PROMPTS, run.plan.source)
        for model in run.config.models:
            if run.fingerprints[model.name] is not None:
                enter_model(run, model)
    except OSError as error:
        raise UserError(f"output {run.folder} cannot be written: {os_reason(error)}") from None


def settle_model(
    run: Prepared, model: Model, checkpoint: str | None, replace_stale: bool
) -> list[str]:
    """Enters a model whose files were not available to ``prepare`` (a hub checkpoint).

    ``checkpoint`` is its fingerprint after loading. Returns a message for each folder of error rows
    that it replaces. Raises UserError as ``prepare`` does.
    """
    run.fingerprints[model.name] = checkpoint
    changed = stale.find_stale(run.ledger, _settings(run, model))
    failed = stale.check_replaceable(run.folder, changed, replace_stale)
    if changed:
        run.ledger.clear(*(layout.images(*key) for key in changed))
    enter_model(run, model)
    return failed


def enter_model(run: Prepared, model: Model) -> None:
    """Writes the ledger's entries of a model's images, before the first of them."""
    for key, settings in _settings(run, model).items():
        run.ledger.enter(layout.images(*key), settings)


def describe(run: Run) -> dict[str, Any]:
    """Returns the content of ``run.json``, without credentials."""
    return {
        "format": layout.FORMAT,
        "version": __version__,
        "config": shareable_config(run.config),
        "models": {name: one.as_dict() for name, one in run.models.items()},
        "prompts": run.prompts,
        "shards": len(run.shards),
    }


def write_description(run: Run) -> None:
    """Writes ``run.json``."""
    run.folder.write(layout.RUN, json.dumps(seal.with_seal(describe(run)), indent=2))


def shareable_config(config: Config, exclude_defaults: bool = False) -> dict[str, Any]:
    """Returns the config as plain data, without credentials."""
    plain = config.model_dump(mode="json", exclude_defaults=exclude_defaults)
    without: dict[str, Any] = _without_credentials(plain)
    return without


def _without_credentials(value: Any) -> Any:
    """Returns plain data with the credentials removed from every string in it."""
    if isinstance(value, dict):
        return {key: _without_credentials(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_credentials(item) for item in value]
    return without_credentials(value) if isinstance(value, str) and "://" in value else value


def load_run(output: str) -> Run:
    """Returns the run of an output folder, for scoring, reporting and verifying.

    Raises UserError if the folder has no run, a run of another format, or only a part of its
    prompts.

    Example::

        load_run("out/demo").config.arms
    """
    folder = Folder(output)
    config, ledger = stored_config(folder, output), Provenance(folder)
    shards = prompt_store.stored_shards(folder)
    prompt_store.check_whole(folder, shards, ledger)
    return Run(config, folder, shards, ledger, models=stored_models(folder))


def stored_models(folder: Folder) -> dict[str, ModelDescription]:
    """Returns the models that the folder describes, by name; older outputs have none."""
    content = shapes.read(folder.without_retries, layout.RUN, shapes.RunFile) or {}
    return read_descriptions(content.get("models"))


def stored_config(folder: Folder, output: str) -> Config:
    """Returns the folder's config with ``output`` as its output; raises as ``load_run``."""
    try:
        content = shapes.read_json(folder.without_retries, layout.RUN)
    except UserError:
        content = None
    if not isinstance(content, dict) or "config" not in content:
        raise UserError(
            f"output {folder} has no run: it has no readable {layout.RUN}. Fix: render it first "
            "with tgate-batch render"
        )
    check_format(folder, content)
    content = shapes.read(folder.without_retries, layout.RUN, shapes.RunFile)
    return parse_plain(
        content["config"] | {"output": output}, f"output {folder}: {layout.RUN} cannot be used"
    )


def finished(run: Run) -> Finished:
    """Returns the shards of each arm that have a file, without damaged ones; one listing."""
    shards: Finished = {(model.name, arm): set() for model, arm, _ in run.pairs()}
    folders = {layout.images(*key): key for key in shards if layout.images(*key) in run.ledger}
    damaged = damaged_files(run.folder)
    for name in run.folder.names(layout.IMAGES, ".parquet"):
        file = layout.folder_and_shard(name)
        if file is not None and file[0] in folders and name not in damaged:
            shards[folders[file[0]]].add(file[1])
    return shards


def pending(run: Run, done: Finished | None = None) -> Pending:
    """Returns the arms that lack a file, by model and shard; ``done``: result of ``finished``."""
    done = finished(run) if done is None else done
    missing: Pending = {model.name: {} for model in run.config.models}
    for model, shards in missing.items():
        for shard in run.shards:
            arms = tuple(arm for arm in run.config.arms if shard.index not in done[model, arm])
            if arms:
                shards[shard.index] = arms
    return missing


def damaged_files(folder: Folder) -> dict[str, str]:
    """Returns files that a reader found damaged and no run has replaced: name -> the damage."""
    return shapes.read(folder, layout.DAMAGED, shapes.DamagedFile) or {}


def note_damaged(folder: Folder, damaged: Mapping[str, str]) -> None:
    """Writes the list of damaged files; removes the file if the list is empty."""
    if damaged:
        folder.write(layout.DAMAGED, json.dumps(dict(sorted(damaged.items())), indent=1))
    else:
        folder.delete(layout.DAMAGED)


def _dtype(config: Config, model: Model) -> str:
    return checkpoint.resolved_dtype(model, device_of(config))


def device_of(config: Config) -> str:
    """Returns the device of a run's workers."""
    return "cuda" if config.workers.gpus_each > 0 else "cpu"


def _settings(run: Prepared, only: Model | None = None) -> dict[ArmKey, layout.Settings]:
    """Returns the settings of every arm's images, or of one model's."""
    return {
        (model.name, name): layout.of_pictures(
            run.config,
            model.name,
            arm,
            run.sampling(model.name),
            run.fingerprints[model.name],
            _dtype(run.config, model),
        )
        for model, name, arm in run.pairs()
        if only is None or model.name == only.name
    }
