"""Checks an output's config and ledger, and that the ledger agrees with the files."""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tgate_batch.config import Arm
from tgate_batch.errors import UserError, shown
from tgate_batch.execute.verify.findings import DAMAGED, JSONS, MISSING, Findings, guarded
from tgate_batch.output import layout, parquet, prompt_store, seal, shapes
from tgate_batch.output import run as runs
from tgate_batch.output.layout import IDENTITY_KEY, Settings
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.provenance import Provenance, check_format
from tgate_batch.output.run import Run
from tgate_batch.score.registry import features_of
from tgate_batch.storage import Folder

_FOOTERS_READ = 3  # of an arm, to check its entry in the ledger
_RESTORE_LEDGER = (
    "restore it from a copy, or let --repair remove it, then run tgate-batch render with the run's "
    "config, which makes it again from the files"
)
_MOST_MEASUREMENTS = 12  # of an arm; more have too many subsets to try

Pair = tuple[str, str]  # model, arm


@dataclass
class Entries:
    """The settings that each folder's files must have.

    ``images``: by arm; ``folders``: by folder of measurements or sums. ``wrong``: a wrong entry ->
    why, and its right settings (None if not known). ``scored``: the folders of the measurements
    in an arm's sums. ``config``: how the config differs from what was rendered.
    """

    images: dict[Pair, Settings] = field(default_factory=dict)
    folders: dict[str, Settings] = field(default_factory=dict)
    wrong: dict[str, tuple[str, Settings | None]] = field(default_factory=dict)
    scored: dict[Pair, list[str]] = field(default_factory=dict)
    config: list[str] = field(default_factory=list)


def open_output(output: str, findings: Findings) -> Run | None:
    """Loads the run, with the shards whose plans can be read; the rest is added to ``findings``.

    Raises UserError if the folder has no run, or one of another format.
    """
    folder = Folder(output)
    if not folder.exists(layout.RUN) and not folder.exists(layout.LEDGER):
        raise UserError(
            f"output {folder} has no run. Fix: give the output folder of tgate-batch render"
        )
    for name, shape, advice in (
        (layout.RUN, shapes.RunFile, "run tgate-batch render --config, which writes it again"),
        (layout.LEDGER, shapes.LedgerFile, _RESTORE_LEDGER),
    ):
        content: list[Any] = []
        reasons = _read(folder, name, content)
        if not reasons and isinstance(content[0], dict):
            check_format(folder, content[0])
        if reasons := reasons or shapes.faults(content[0], shape):
            kind = DAMAGED if folder.exists(name) else MISSING
            why = f"{reasons[0]}, and nothing else can be checked without it. Fix: {advice}"
            findings.add(JSONS, name, [why], kind)
            return None
    try:
        config = runs.stored_config(folder, output)
    except UserError as error:
        findings.add(JSONS, layout.RUN, [str(error)])
        return None
    shards: list[ShardPlan] = []
    for name in folder.names(layout.PROMPTS, ".parquet"):
        try:
            with parquet.open_table(folder, name) as file:
                shards += prompt_store.plans(file)
        except Exception:  # Parts reports it
            continue
    shards.sort(key=lambda shard: shard.index)
    return Run(config, folder, shards, Provenance(folder), models=runs.stored_models(folder))


@guarded
def _read(folder: Folder, name: str, into: list[Any]) -> list[str]:
    into.append(content := shapes.parse_json(folder.read(name)))
    if seal.is_broken(content) and content.get("format") not in layout.READABLE:
        return [f"its format {shown(content.get('format'))} is not that of its digest"]
    return []


def check_provenance(run: Run, present: Collection[str]) -> Entries:
    """Compares the ledger with the config and with the footers of some files."""
    entries = Entries()
    arms = {(model.name, name): arm for model, name, arm in run.pairs()}
    folders = {name: layout.role_of_folder(name) for name in run.ledger.names()}
    rendered = {
        (str(p.model), str(p.arm)) for p in folders.values() if p is not None and p.kind == "images"
    }
    for pair in dict.fromkeys([*arms, *sorted(rendered)]):
        _check_images_entry(run, pair, arms.get(pair), present, entries)
    for name, role in folders.items():
        if role is None or role.kind == "images" or name not in run.ledger:
            continue
        entries.folders[name] = run.ledger[name]
        paired = (str(role.model), str(role.arm)) in arms  # a former arm has no baseline now
        if why := _why_wrong(entries, run.ledger[name], role, paired):
            entries.wrong[name] = (why, None)
    for pair in arms:
        _check_sums_entry(run, pair, entries)
    return entries


def _check_images_entry(
    run: Run, pair: Pair, arm: Arm | None, present: Collection[str], entries: Entries
) -> None:
    folder = layout.images(*pair)
    entered = folder in run.ledger
    given = run.ledger[folder] if entered else None
    wanted = [] if arm is None else list(_by_config(run, pair, arm, given))
    footers = _footers(run, folder, present)
    if given is not None:
        entries.images[pair] = given
        if not wanted or (wanted[0] == given and (not footers or _matches(given, footers))):
            return
    right = next((settings for settings in wanted if _matches(settings, footers)), None)
    if right is not None:
        why = "it is missing" if given is None else _differences(given, right)
        entries.images[pair] = right
        entries.wrong[folder] = (why, right)
    elif given is not None and wanted[0] != given:
        if _matches(given, footers):
            entries.config.append(f"arm {pair[1]} of {pair[0]}: {_differences(wanted[0], given)}")
        else:
            entries.wrong[folder] = (_differences(given, wanted[0]), None)


def _by_config(run: Run, pair: Pair, arm: Arm, given: Settings | None) -> Iterator[Settings]:
    """Yields the settings that the config gives an arm: with its checkpoint, then its siblings'."""
    siblings = [run.ledger[name] for name in run.ledger.names() if name in run.ledger]
    known = [given or {}, *(one for one in siblings if one.get("model") == pair[0])]
    tried: dict[str, None] = {}
    for one in known:
        try:
            sampling = run.sampling(pair[0])
        except UserError:  # a model of a plugin
            return
        checkpoint, dtype = str(one.get("checkpoint")), str(one.get("dtype"))
        settings = layout.of_pictures(run.config, pair[0], arm, sampling, checkpoint, dtype)
        if layout.identity(settings) not in tried:
            tried[layout.identity(settings)] = None
            yield settings


def _footers(run: Run, folder: str, present: Collection[str]) -> list[tuple[str, str]]:
    """Returns the shard's digest and the identity of some files of a folder."""
    footers: list[tuple[str, str]] = []
    for shard in run.shards:
        name = layout.shard_file(folder, shard.index)
        if len(footers) == _FOOTERS_READ:
            break
        if name not in present:
            continue
        try:
            with parquet.open_table(run.folder, name) as file:
                identity = (file.metadata.metadata or {}).get(IDENTITY_KEY, b"")
        except Exception:  # a damaged file, which its own check reports
            continue
        footers.append((shard.digest, identity.decode(errors="replace")))
    return footers


def _matches(settings: Settings, footers: list[tuple[str, str]]) -> bool:
    return any(layout.file_identity(settings, digest) == identity for digest, identity in footers)


def _differences(there: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    keys = [key for key in dict.fromkeys((*there, *right)) if there.get(key) != right.get(key)]
    pairs = (f"{key} is {_short(there.get(key))}, not {_short(right.get(key))}" for key in keys)
    return ", ".join(pairs)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _why_wrong(
    entries: Entries, entry: Settings, role: layout.FileRole, paired: bool
) -> str | None:
    """Returns why an entry of measurements does not belong to the arm's images; None if it does.

    ``paired``: the baseline must be one of the present ones.
    """
    images = entries.images.get((str(role.model), str(role.arm)))
    if images is None or role.kind not in ("features", "measured"):
        return None  # an arm that is no longer in the config, and whose images were cleared
    if role.kind == "features":
        like = layout.of_features(images, "", 1, "")
        name = layout.spelled(str(entry.get("extractor"))) == role.of
        return None if name and _fits(entry, like) else "it is not of the arm's images"
    if role.of == layout.ROWS:
        like = layout.of_rows(images)
        return None if _fits(entry, like) else "it is not of the arm's images"
    like = layout.of_measurement(images, 1, None, None)
    baselines = [
        layout.identity(settings) for (m, _), settings in entries.images.items() if m == role.model
    ]
    if not _fits(entry, like):
        return "it is not of the arm's images"
    if paired and entry["baseline"] not in (None, *baselines):
        return "its baseline is of images that do not exist"
    return None


def _fits(entry: Settings, like: Settings) -> bool:
    return entry.keys() == like.keys() and entry["pictures"] == like["pictures"]


def _check_sums_entry(run: Run, pair: Pair, entries: Entries) -> None:
    folder = layout.sums_of(*pair)
    if folder not in entries.folders:
        return
    entry, images = entries.folders[folder], entries.images.get(pair, {})
    if entry.get("images_per_prompt") != images.get("sampling.images_per_prompt"):
        entries.wrong[folder] = ("its images_per_prompt is not that of the images", None)
        return
    subsets = list(_subsets(_measurements(entries, pair)))
    subset = next(
        (settings for settings in subsets if layout.identity(settings) == entry.get("measured")),
        None,
    )
    if subset is None:
        entries.wrong[folder] = ("it is not of the arm's measurements", None)
        return
    entries.scored[pair] = [_folder_of(name, pair, entries) for name in subset]
    if entry.get("baseline") is None or any(
        layout.identity(settings) == entry["baseline"]
        for model, arm in entries.images
        if model == pair[0]
        for settings in _subsets(_measurements(entries, (model, arm)))
    ):
        return
    entries.wrong[folder] = ("it is not of the baseline's measurements", None)


def _measurements(entries: Entries, pair: Pair) -> dict[str, Settings]:
    """Returns an arm's measurements by the names that sums use."""
    named = {}
    for folder, settings in entries.folders.items():
        role = layout.role_of_folder(folder)
        if role is not None and (role.model, role.arm) == pair and role.of is not None:
            extractor = features_of(str(settings.get("extractor")))
            named[extractor if role.kind == "features" else role.of] = settings
    return named


def _folder_of(name: str, pair: Pair, entries: Entries) -> str:
    measured = layout.measured(name, *pair)
    if measured in entries.folders:
        return measured
    return layout.features(name.removeprefix(features_of("")), *pair)


def _subsets(named: Mapping[str, Settings]) -> Iterator[dict[str, Settings]]:
    """Yields subsets of the measurements, the largest first; old metrics may still have entries."""
    least = 0 if len(named) <= _MOST_MEASUREMENTS else len(named) - 1
    for size in range(len(named), least, -1):
        for chosen in itertools.combinations(named.items(), size):
            yield dict(chosen)
