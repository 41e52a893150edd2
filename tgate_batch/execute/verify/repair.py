"""Removes from an output what is not as it should be, so that the next run makes it again.

With a file goes all that was made of it: a picture file takes its shard's measurements along, and
a measurement the arm's sums and scores. What the baseline loses, the other arms' comparisons lose.
The caller owns the folder.
"""

from collections.abc import Iterator
from contextlib import suppress

from tgate_batch.execute.verify.findings import (
    DAMAGED,
    FOREIGN,
    KEPT,
    LOST,
    MISSING,
    STRAY,
    UNREAD,
    Fault,
    Findings,
)
from tgate_batch.execute.verify.results import is_entry, readable
from tgate_batch.output import layout, prompt_plan
from tgate_batch.output import run as runs
from tgate_batch.output.layout import FileRole
from tgate_batch.output.run import Run
from tgate_batch.storage import Folder, StorageError

_SHOWN = 20
_CHUNK = 2**22  # bytes
_OF_SHARDS = ("images", "features", "measured")
_OF_ARMS = ("sums", "conclusion", "statistics", "scores")
_REPORT = (layout.REPORT_JSON, layout.REPORT_MARKDOWN, layout.REPORT_PAGE)


def restore_prompts(run: Run, found: Findings) -> Iterator[str]:
    """Writes frozen prompts that are damaged or missing again; yields a line for each.

    Raises UserError, which says what is needed, where they cannot be told from their source.
    """
    names = [fault.name for fault in found.faults if fault.kind == LOST]
    if not names:
        return
    batch = runs.prompts_a_batch(run.config)
    prompt_plan.rewrite_parts(run.folder, run.config.prompts, run.ledger, batch, names)
    yield from (f"written again: {name}" for name in names)


def repair_output(folder: Folder, run: Run | None, found: Findings) -> Iterator[str]:
    """Removes what can be made again; yields lines that say what was done.

    ``run`` is None where it cannot be told: then only what is damaged itself goes.
    """
    names: dict[str, None] = {}
    unread = [fault for fault in found.faults if _is_away(folder, fault)]
    faults = [fault for fault in found.faults if fault not in unread]
    if run is not None:
        for fault in faults:
            if fault.entry is not None:
                yield _corrected(run, *fault.entry)
        names |= dict.fromkeys(_derived(run, faults))
    for fault in faults:
        if fault.kind in (DAMAGED, STRAY) and fault.entry is None:
            names[fault.name] = None
    if layout.HISTORY in names:
        names.pop(layout.HISTORY)
        yield _without_torn_lines(folder)
    if layout.LEDGER in names and run is not None:  # what is wrong in it is corrected by now
        names.pop(layout.LEDGER)
        run.ledger.write()
        yield f"corrected: {layout.LEDGER}"
    for name in names:
        folder.delete(name)
    _forget(folder, set(names))
    yield from (f"removed: {name}" for name in [*names][:_SHOWN])
    if len(names) > _SHOWN:
        yield f"removed: {len(names) - _SHOWN:,} more"
    left = [*(fault for fault in faults if fault.kind in (FOREIGN, KEPT, LOST)), *unread]
    yield from (f"left alone: {fault.name}: {fault.reason}" for fault in left[:_SHOWN])
    yield _verdict(found, len(names), len(left))


def _is_away(folder: Folder, fault: Fault) -> bool:
    """Whether it was the storage that could not be read, and not a file that is damaged.

    Nothing is removed for an outage: what could not be read is read once more.
    """
    if fault.kind != DAMAGED or fault.entry is not None or not fault.reason.startswith(UNREAD):
        return False
    try:
        with folder.open(fault.name) as stream:
            while stream.read(_CHUNK):
                pass
    except FileNotFoundError:
        return False
    except (OSError, StorageError):
        return True
    return not readable(folder, fault.name)


def _verdict(found: Findings, removed: int, left: int) -> str:
    if not found.faults:
        return "nothing to repair"
    told = [f"files removed: {removed:,}"]
    if left:
        told.append(f"left to you: {left:,}")
    if left < len(found.faults):
        told.append("tgate-batch render with the run's config makes again what is missing")
    return "; ".join(told)


def _corrected(run: Run, folder: str, right: layout.Settings | None) -> str:
    """Sets an entry of the ledger right; one that nobody knows is cleared with its files."""
    if right is not None:
        run.ledger.record(folder, right)
        return f"corrected: the ledger's entry of {folder}"
    run.ledger.clear(folder)
    return f"cleared: {folder}, which is of an entry that nobody knows"


def _derived(run: Run, faults: list[Fault]) -> Iterator[str]:
    """What was made of files that are damaged or missing."""
    shards: set[tuple[str, str, int]] = set()  # whose pictures are damaged or missing
    arms: set[tuple[str, str]] = set()  # whose sums are
    for fault in faults:
        if fault.kind not in (DAMAGED, MISSING):
            continue
        role = _place(fault)
        if role is None or role.model is None or role.arm is None:
            continue
        if role.kind == "images":
            shards.add((role.model, role.arm, role.number))
        if role.kind != "scores":
            arms.add((role.model, role.arm))
    arms |= {pair for beside in arms for pair in _compared_with(run, *beside)}
    for folder in (layout.FEATURES, layout.MEASURED):
        for name in run.folder.names(folder):
            role = layout.role_of(name)
            if role is not None and _is_of(run, role, shards):
                yield name
    for folder in (layout.SUMS, layout.FEATURES):
        for name in run.folder.names(folder):
            role = layout.role_of(name)
            if role is not None and role.kind in _OF_ARMS and _pair(role) in arms:
                yield name
    for pair in arms:
        if run.folder.exists(layout.scores(*pair)):
            yield layout.scores(*pair)
    if arms:
        yield from (name for name in _REPORT if run.folder.exists(name))


def _place(fault: Fault) -> FileRole | None:
    """What a fault is of; that of a ledger's entry is of its folder, from the first shard on."""
    if fault.entry is None:
        return layout.role_of(fault.name)
    if fault.entry[1] is not None:
        return None  # the files are right
    return layout.role_of_folder(fault.entry[0])


def _pair(role: FileRole) -> tuple[str, str]:
    return str(role.model), str(role.arm)


def _compared_with(run: Run, model: str, arm: str) -> Iterator[tuple[str, str]]:
    """The other arms of a model, where this one is what they are compared with."""
    if arm == run.config.baseline:
        yield from ((model, other) for other in run.config.arms if other != arm)


def _is_of(run: Run, role: FileRole, shards: set[tuple[str, str, int]]) -> bool:
    """Whether a measurement is of pictures that go, or stands beside a baseline's that go."""
    if role.kind not in _OF_SHARDS:
        return False
    if (*_pair(role), role.number) in shards:
        return True
    baseline = run.config.baseline
    if baseline is None or (str(role.model), baseline, role.number) not in shards:
        return False
    folder = layout.measured(str(role.of), *_pair(role))
    paired = folder in run.ledger and run.ledger[folder].get("baseline") is not None
    return role.kind == "measured" and paired


def _forget(folder: Folder, names: set[str]) -> None:
    """Takes files that are gone off the list of those to be drawn again: they are missing now."""
    with suppress(ValueError, OSError):
        noted = runs.damaged_files(folder)
        if names & noted.keys():
            runs.note_damaged(folder, {n: why for n, why in noted.items() if n not in names})


def _without_torn_lines(folder: Folder) -> str:
    lines = folder.read(layout.HISTORY).splitlines()
    kept = []
    for line in lines:
        if is_entry(line):
            kept.append(line + b"\n")
    folder.write(layout.HISTORY, b"".join(kept))
    return f"corrected: {layout.HISTORY}, {len(lines) - len(kept)} lines less"
