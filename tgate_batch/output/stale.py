"""Images that an output has of other settings than the config's: find, refuse or replace them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from tgate_batch.errors import UserError
from tgate_batch.output import layout, parquet
from tgate_batch.output.provenance import Provenance
from tgate_batch.storage import Folder

ArmKey = tuple[str, str]  # (model, arm)
Stale = dict[ArmKey, dict[str, tuple[Any, Any]]]  # -> setting -> (the output's, the config's)


def find_stale(ledger: Provenance, settings: Mapping[ArmKey, layout.Settings]) -> Stale:
    """Returns the settings in which the images of each arm differ from the given settings."""
    stale: Stale = {}
    for key, given in settings.items():
        changed = ledger.differences(layout.images(*key), given)
        if given["checkpoint"] is None:
            changed.pop("checkpoint", None)  # unknown until the model is loaded
        if changed:
            stale[key] = changed
    return stale


def check_replaceable(folder: Folder, stale: Stale, replace_stale: bool) -> list[str]:
    """Returns a message for each stale folder that has error rows only; they are rendered again.

    Raises UserError for stale folders that have an image, unless ``replace_stale`` is set.
    """
    if replace_stale or not stale:
        return []
    files: dict[str, list[str]] = {}
    for name in folder.names(layout.IMAGES, ".parquet"):
        files.setdefault(name.rpartition("/")[0], []).append(name)
    errors = {key: count_errors(folder, files.get(layout.images(*key), ())) for key in stale}
    if refused := {key: changed for key, changed in stale.items() if errors[key] is None}:
        raise UserError(
            f"output {folder} has images of other settings: {'; '.join(_describe(refused))}. Fix: "
            "give another output, the settings of these images, or --replace-stale to render them "
            "again"
        )
    descriptions = zip(errors.values(), _describe(stale), strict=True)
    return [
        rerender_note(count, f"other settings ({text})") for count, text in descriptions if count
    ]


def rerender_note(errors: int, what: str) -> str:
    rows = f"{errors:,} row{'s' if errors != 1 else ''}"
    return f"the output has {rows} of {what}, all failed; they are rendered again"


def count_errors(folder: Folder, names: Iterable[str]) -> int | None:
    """Returns the number of error rows in image files; None if a file may contain an image."""
    errors = 0
    for name in names:
        try:
            with parquet.open_table(folder, name) as file:
                rows = file.metadata.num_rows
                failed = int(parquet.footer(file).get(layout.ERRORS_KEY, 0))
        except (*parquet.DAMAGE, ValueError):
            return None
        if failed < rows:
            return None
        errors += failed
    return errors


def check_provenance(
    folder: Folder,
    ledger: Provenance,
    settings: Mapping[ArmKey, layout.Settings],
    digests: Mapping[int, str],
) -> None:
    """Raises UserError for image files of unknown settings: the ledger has no entry for them.

    If a ledger was lost, the first readable file of an arm proves that it has the given settings;
    the arm is then entered again. ``digests``: the digest of each shard's prompts.
    """
    expected = {layout.images(*key): settings[key] for key in settings}
    known = set(ledger.names())
    unknown: dict[str, str] = {}
    for name in folder.names(layout.IMAGES, ".parquet"):
        parent = name.rpartition("/")[0]
        if parent in known:
            continue
        unknown.setdefault(parent, name)
        file, given = layout.folder_and_shard(name), expected.get(parent)
        if file is None or given is None or given["checkpoint"] is None or file[1] not in digests:
            continue
        identity = layout.file_identity(given, digests[file[1]])
        with suppress(*parquet.DAMAGE), parquet.open_table(folder, name, identity):
            known.add(parent)
    for parent, name in unknown.items():
        if parent not in known:
            raise UserError(
                f"output {folder} has {name}, but {layout.LEDGER} lacks its settings, and they are "
                "not those of this config. Fix: give the config that it was rendered with, or "
                "another output"
            )


def _describe(stale: Stale) -> Iterator[str]:
    for (model, arm), changed in stale.items():
        settings = ", ".join(
            f"{key} {_short(before)} there and {_short(now)} in the config"
            for key, (before, now) in changed.items()
        )
        yield f"arm {arm} of {model} has {settings}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:12]}…"
