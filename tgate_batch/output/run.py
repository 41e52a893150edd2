"""One config in one output folder: what may be rendered there, what is finished and pending."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tgate_batch import __version__
from tgate_batch.config import Arm, Config, Model, ResolvedSampling, parse_plain
from tgate_batch.errors import Problems, UserError
from tgate_batch.models import catalogue, checkpoint, schedulers
from tgate_batch.models.description import ModelDescription, describe_model, read_descriptions
from tgate_batch.models.family import Family
from tgate_batch.models.fingerprint import fingerprint
from tgate_batch.models.resolve import mixes_guidance, resolve_model
from tgate_batch.models.schedulers import check_file, supports_image_to_image
from tgate_batch.output import card, layout, parquet, prompt_store, seal, shapes
from tgate_batch.output.prompt_store import PromptPlan, ShardPlan, StalePrompts
from tgate_batch.output.provenance import Provenance, check_format
from tgate_batch.prompts import reader as prompts
from tgate_batch.records import AS_OTHERS, BatchKey
from tgate_batch.storage import Folder, without_credentials

Finished = dict[tuple[str, str], set[int]]  # (model, arm) -> the shards that have a file
Pending = dict[str, dict[int, tuple[str, ...]]]  # model -> shard -> the arms that lack a file


@dataclass(frozen=True)
class Run:
    """A checked config, its output folder, and the folder's shards and ledger."""

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
        """How a model samples. Older outputs do not say: then as the catalogue has it."""
        section = next((each for each in self.config.models if each.name == model), None)
        if section is not None and model in self.models:
            return self.models[model].under(section, self.config.sampling)
        return catalogue.resolve(model, self.config.sampling)

    @property
    def batch_keys(self) -> Counter[BatchKey]:
        """How many prompts are of each kind."""
        found: Counter[BatchKey] = Counter()
        for shard in self.shards:
            found[shard.batch_key] += shard.prompts
        return found

    def pairs(self) -> list[tuple[Model, str, Arm]]:
        """Every (model, arm name, arm) of the run, in the config's order."""
        return [
            (model, name, arm)
            for model in self.config.models
            for name, arm in self.config.arms.items()
        ]

    def provenance_of(self, model: str, arm: str) -> layout.Settings:
        """What the arm's pictures are made of; raises KeyError where it has none yet."""
        return self.ledger[layout.images(model, arm)]

    def promised_checkpoint(self, model: str, arm: str) -> str | None:
        """The fingerprint of the checkpoint that renders an arm; None if it is not known."""
        found = self.provenance_of(model, arm).get("checkpoint")
        return found if isinstance(found, str) else None

    def pictures(self, model: str, arm: str, shard: ShardPlan) -> tuple[str, str]:
        """The file of a shard's pictures and its identity; raises as ``made_of`` does."""
        name = layout.shard_file(layout.images(model, arm), shard.index)
        return name, layout.file_identity(self.provenance_of(model, arm), shard.digest)


@dataclass(frozen=True)
class Prepared(Run):
    """A run that may be rendered.

    ``stale``: folders of other settings, which it will replace. ``failed``: a line for each that
    holds error rows alone.
    """

    plan: PromptPlan
    stale: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    fingerprints: dict[str, str | None] = field(default_factory=dict)  # by model


def prepare(
    config: Config, replace_stale: bool = False, problems: Problems | None = None
) -> Prepared:
    """Checks everything that can be checked without loading a model. Writes nothing.

    ``problems``: what other checks found. All that is found is raised together, but for what only
    a sound config can be asked.

    Raises UserError for models that cannot be found, plans that do not fit the steps, bad prompts,
    a place that cannot be written, and pictures of other settings unless they are to be replaced.
    A folder without a picture makes no claim on settings: it is replaced unasked.
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
                    _check_arm(model.name, name, arm, sampling)
                    if arm.scheduler is not None:
                        where = f"arms.{name}.scheduler with {model.name}"
                        check_file(resolve_model(model), arm.scheduler, where)
    with problems.collected():
        folder = Folder(config.output)
        folder.check_writable()
        _check_run(folder)
    if problems:
        with problems.collected():
            prompts.describe_columns(config.prompts, config.score.by)
    problems.raise_if_any()
    ledger = Provenance(folder)
    stale: list[str] = []
    failed: list[str] = []
    batch = prompts_a_batch(config)
    apart = not all(mixes_guidance(model) for model in config.models)
    wanted = (config.score.by, batch, apart, config.sampling.given)
    try:
        plan = prompt_store.plan_shards(folder, config.prompts, ledger, *wanted)
    except StalePrompts:
        held = _held(folder, folder.names(layout.IMAGES, ".parquet"))
        if held.image and not replace_stale:
            raise
        stale = ledger.names()
        failed = [_AGAIN.format(held.told, "other prompts")] if held.errors else []
        plan = prompt_store.plan_shards(folder, config.prompts, None, *wanted)
    _check_kinds(config, models, plan.shards)
    fingerprints = {
        model.name: fingerprint(model, _dtype(config, model)) for model in config.models
    }
    run = Prepared(
        config, folder, plan.shards, ledger, plan, fingerprints=fingerprints, models=models
    )
    _check_all_entered(run)
    found = _stale(run)
    failed += _replaceable(run, found, replace_stale or bool(stale))
    names = [*stale, *(layout.images(model, arm) for model, arm in found)]
    return replace(run, stale=tuple(dict.fromkeys(names)), failed=tuple(failed))


def prompts_a_batch(config: Config) -> int:
    """The fewest prompts whose images fill whole batches."""
    rows = config.sampling
    return rows.batch_size // math.gcd(rows.batch_size, rows.images_per_prompt)


def begin_run(run: Prepared) -> None:
    """Clears what is stale and what killed writers left; freezes the config and the prompts.

    Raises UserError where the output cannot be written after all, or has changed since it was
    prepared.
    """
    try:
        if not run.ledger.is_current():
            raise UserError(
                f"output {run.folder} was changed by another run meanwhile: start again"
            )
        run.folder.clear_temporary()
        run.ledger.finish_clearing()
        if run.stale:
            run.ledger.clear(*run.stale)
        write_description(run)
        card.write(run.folder)
        prompt_store.store_prompts(run.folder, run.config.prompts, run.plan, run.config.score.by)
        run.ledger.record(layout.PROMPTS, run.plan.source)
        for model in run.config.models:
            if run.fingerprints[model.name] is not None:
                enter_model(run, model)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"output {run.folder} cannot be written: {reason}") from None


def settle_model(run: Prepared, model: Model, found: str | None, replace_stale: bool) -> list[str]:
    """Enters a model whose files were not at hand when the run was prepared (a hub checkpoint).

    ``found`` is its fingerprint after loading. Returns a line for each folder of error rows that it
    replaces. Raises UserError as ``prepare`` does.
    """
    run.fingerprints[model.name] = found
    stale = {key: changed for key, changed in _stale(run).items() if key[0] == model.name}
    failed = _replaceable(run, stale, replace_stale)
    if stale:
        run.ledger.clear(*(layout.images(*key) for key in stale))
    enter_model(run, model)
    return failed


def enter_model(run: Prepared, model: Model) -> None:
    """Writes the ledger's entries of a model's pictures, before the first of them."""
    for name, arm in run.config.arms.items():
        run.ledger.enter(layout.images(model.name, name), _settings(run, model, arm))


def describe(run: Run) -> dict[str, Any]:
    """What ``run.json`` holds. No credentials are in it."""
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
    """The config as plain data, without credentials."""
    plain = config.model_dump(mode="json", exclude_defaults=exclude_defaults)
    without: dict[str, Any] = _without_credentials_in(plain)
    return without


def _without_credentials_in(value: Any) -> Any:
    """Plain data with the credentials taken out of every string in it."""
    if isinstance(value, dict):
        return {key: _without_credentials_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_credentials_in(item) for item in value]
    return without_credentials(value) if isinstance(value, str) and "://" in value else value


def load_run(output: str) -> Run:
    """The run that an output folder holds: for scoring, reporting and verifying.

    Raises UserError where the folder holds none, one of another format, or only a part of its
    prompts.
    """
    folder = Folder(output)
    config, ledger = stored_config(folder, output), Provenance(folder)
    shards = prompt_store.stored_shards(folder)
    prompt_store.check_whole(folder, shards, ledger)
    return Run(config, folder, shards, ledger, models=stored_models(folder))


def stored_models(folder: Folder) -> dict[str, ModelDescription]:
    """How each model samples, as the folder says; older ones do not."""
    return read_descriptions(
        (shapes.read(folder.without_retries, layout.RUN, shapes.RunFile) or {}).get("models")
    )


def stored_config(folder: Folder, output: str) -> Config:
    """The config that a folder holds, with ``output`` as its output; raises as ``load_run``."""
    try:
        content = shapes.read_json(folder.without_retries, layout.RUN)
    except UserError:
        content = None
    if not isinstance(content, dict) or "config" not in content:
        raise UserError(
            f"output {folder} holds no run: it has no readable {layout.RUN}; render it first with "
            "tgate-batch render"
        )
    check_format(folder, content)
    content = shapes.read(folder.without_retries, layout.RUN, shapes.RunFile)
    return parse_plain(
        content["config"] | {"output": output}, f"output {folder}: {layout.RUN} cannot be used"
    )


def finished(run: Run) -> Finished:
    """The shards of each arm that have a file: one listing, and what was found damaged left out."""
    held: Finished = {(model.name, arm): set() for model, arm, _ in run.pairs()}
    folders = {layout.images(*pair): pair for pair in held if layout.images(*pair) in run.ledger}
    left_out = damaged_files(run.folder)
    for name in run.folder.names(layout.IMAGES, ".parquet"):
        place = layout.folder_and_shard(name)
        if place is not None and place[0] in folders and name not in left_out:
            held[folders[place[0]]].add(place[1])
    return held


def pending(run: Run, held: Finished | None = None) -> Pending:
    """What has no file yet: model -> shard's index -> arms. ``held``: what ``finished`` said."""
    held = finished(run) if held is None else held
    found: Pending = {}
    for model in run.config.models:
        found[model.name] = {}
        for shard in run.shards:
            arms = (arm for arm in run.config.arms if shard.index not in held[model.name, arm])
            if left := tuple(arms):
                found[model.name][shard.index] = left
    return found


def damaged_files(folder: Folder) -> dict[str, str]:
    """Files that a reader found damaged and no run has drawn again: name -> what was found."""
    return shapes.read(folder, layout.DAMAGED, shapes.DamagedFile) or {}


def note_damaged(folder: Folder, found: Mapping[str, str]) -> None:
    """Keeps the list of damaged files; an empty one leaves no file."""
    if found:
        folder.write(layout.DAMAGED, json.dumps(dict(sorted(found.items())), indent=1))
    else:
        folder.delete(layout.DAMAGED)


def _check_arm(model: str, name: str, arm: Arm, sampling: ResolvedSampling) -> None:
    follows = arm.plan or arm.guidance
    if follows is None:
        return
    try:
        follows.check(sampling.under(arm).steps_run)
    except ValueError as error:
        raise UserError(f"arms.{name} with {model}: {error}") from None


def _check_kinds(
    config: Config, models: Mapping[str, ModelDescription], shards: list[ShardPlan]
) -> None:
    """Raises UserError, naming the first row of its kind, for what a model or an arm refuses."""
    first: dict[BatchKey, int] = {}
    for shard in shards:
        first.setdefault(shard.batch_key, shard.first)
    families = {model.name: resolve_model(model).family for model in config.models}
    for kind, place in first.items():
        try:
            for name, family in families.items():
                sampling = models[name].sampling.of_kind(kind)
                _check_size(name, sampling, family.multiple, kind)
                for arm_name, arm in config.arms.items():
                    _check_strength(f"arms.{arm_name} with {name}", family, sampling.under(arm))
                    _check_arm(name, arm_name, arm, sampling)
        except UserError as error:
            if kind == AS_OTHERS:
                raise
            raise UserError(f"prompts, row {place + 1} of the set ({kind}): {error}") from None


def _check_size(model: str, sampling: ResolvedSampling, multiple: int, kind: BatchKey) -> None:
    if sampling.height % multiple or sampling.width % multiple:
        own = kind.height is not None or kind.width is not None
        hint = "prompts.columns: {height: null, width: null}"
        raise UserError(
            f"{model} draws no {sampling.width} x {sampling.height} pixels: width and height have "
            f"to be multiples of {multiple}"
            + (f". Fix: write {hint} if the rows' sizes are those of other images" if own else "")
        )


def _check_strength(what: str, family: Family, sampling: ResolvedSampling) -> None:
    if sampling.strength is None:
        return
    if not family.from_pictures:
        raise UserError(
            f"{what}: diffusers has no image-to-image pipeline of this family that takes encoded "
            "prompts; switch it off (prompts.columns: {strength: null}, and no prompts.strength)"
        )
    if not supports_image_to_image(sampling.scheduler):
        raise UserError(
            f"{what}: {sampling.scheduler} adds no noise to a picture, so no row can begin with "
            "one; give another scheduler"
        )
    if sampling.steps_run == 0:
        raise UserError(
            f"{what}: strength {sampling.strength:g} of {sampling.steps} steps is not one step; "
            "give a larger strength or more steps"
        )


def _check_run(folder: Folder) -> None:
    """Raises UserError where the folder holds a run that this version does not write."""
    content = shapes.read_json(folder, layout.RUN)
    if content is not None:
        check_format(folder, content)


def _check_all_entered(run: Prepared) -> None:
    """Images that the ledger does not know could be of anything, unless their files prove it.

    Where a ledger was lost, the first file of an arm that can be read says whether it was made as
    the config has it; the arm then is entered again. Raises UserError where it was not.
    """
    known, proven = set(run.ledger.names()), set()
    wanted = {
        layout.images(model.name, name): _settings(run, model, arm)
        for model, name, arm in run.pairs()
        if run.fingerprints[model.name] is not None
    }
    digests = {shard.index: shard.digest for shard in run.shards}
    refused: dict[str, str] = {}
    for name in run.folder.names(layout.IMAGES, ".parquet"):
        place = layout.folder_and_shard(name)
        folder = name.rpartition("/")[0]
        if folder in known or folder in proven:
            continue
        refused.setdefault(folder, name)
        if place is None or folder not in wanted or place[1] not in digests:
            continue
        identity = layout.file_identity(wanted[folder], digests[place[1]])
        with suppress(*parquet.DAMAGE), parquet.open_table(run.folder, name, identity):
            proven.add(folder)
    for folder, name in refused.items():
        if folder not in proven:
            raise UserError(
                f"output {run.folder} holds {name}, and {layout.LEDGER} does not say what it was "
                "made of, nor is it of this config. Fix: give the config that it was rendered "
                "with, or another output"
            )


def _dtype(config: Config, model: Model) -> str:
    return checkpoint.resolved_dtype(model, device_of(config))


def device_of(config: Config) -> str:
    """Where a run's workers compute."""
    return "cuda" if config.workers.gpus_each > 0 else "cpu"


def _settings(run: Prepared, model: Model, arm: Arm) -> layout.Settings:
    return layout.of_pictures(
        run.config,
        model.name,
        arm,
        run.sampling(model.name),
        run.fingerprints[model.name],
        _dtype(run.config, model),
    )


Stale = dict[tuple[str, str], dict[str, tuple[Any, Any]]]


def _stale(run: Prepared) -> Stale:
    """(model, arm) -> the settings in which the pictures there differ from the config's."""
    found: Stale = {}
    for model, name, arm in run.pairs():
        changed = run.ledger.differences(
            layout.images(model.name, name), _settings(run, model, arm)
        )
        if run.fingerprints[model.name] is None:
            changed.pop("checkpoint", None)  # not known before it is loaded
        if changed:
            found[model.name, name] = changed
    return found


def _replaceable(run: Run, stale: Stale, replace_stale: bool) -> list[str]:
    """A line for each stale folder that holds error rows alone.

    Raises UserError for those that hold a picture, unless they are to be replaced.
    """
    if replace_stale:
        return []
    names: dict[str, list[str]] = {}
    for name in run.folder.names(layout.IMAGES, ".parquet") if stale else ():
        names.setdefault(name.rpartition("/")[0], []).append(name)
    held = {key: _held(run.folder, names.get(layout.images(*key), ())) for key in stale}
    if bound := {key: changed for key, changed in stale.items() if held[key].image}:
        raise UserError(_explained(run, bound))
    return [
        _AGAIN.format(held[key].told, f"other settings ({line})")
        for key, line in zip(stale, _named(stale), strict=True)
        if held[key].errors
    ]


class _Held(NamedTuple):
    """Whether a picture is there; where none is, how many error rows are."""

    image: bool
    errors: int = 0

    @property
    def told(self) -> str:
        return f"{self.errors:,} row{'s' if self.errors != 1 else ''}"


_AGAIN = "the output holds {} of {}, all failed; they are rendered again"


def _held(folder: Folder, names: Iterable[str]) -> _Held:
    """What files of pictures hold. A damaged one may hold a picture."""
    errors = 0
    for name in names:
        try:
            with parquet.open_table(folder, name) as file:
                rows = file.metadata.num_rows
                failed = int(parquet.footer(file).get(layout.ERRORS_KEY, 0))
        except (*parquet.DAMAGE, ValueError):
            return _Held(True)
        if failed < rows:
            return _Held(True)
        errors += failed
    return _Held(False, errors)


def _explained(run: Run, stale: Stale) -> str:
    return (
        f"output {run.folder} holds pictures of other settings: {'; '.join(_named(stale))}; give "
        "another output, the settings these were made with, or --replace-stale to render them again"
    )


def _named(stale: Stale) -> Iterator[str]:
    for (model, arm), changed in stale.items():
        settings = ", ".join(
            f"{key} {_short(before)} there and {_short(now)} in the config"
            for key, (before, now) in changed.items()
        )
        yield f"arm {arm} of {model} has {settings}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
