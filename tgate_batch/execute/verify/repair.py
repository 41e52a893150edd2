"""Removes from an output what is damaged or stray, so that the next run makes it again.

Files derived from a removed one are removed too: a shard's measurements with its images, and the
arm's sums and scores with a measurement. If the baseline loses something, so do the comparisons of
the other arms. The caller has locked the folder.
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


def restore_prompts(run: Run, findings: Findings) -> Iterator[str]:
    """Writes frozen prompts again that are damaged or missing; yields a line for each.

    Raises UserError, which names what is needed, if their source does not have them.
    """
    names = [fault.name for fault in findings.faults if fault.kind == LOST]
    if not names:
        return
    batch = runs.prompts_a_batch(run.config)
    prompt_plan.rewrite_parts(run.folder, run.config.prompts, run.ledger, batch, names)
    yield from (f"restored: {name}" for name in names)


def repair_output(folder: Folder, run: Run | None, findings: Findings) -> Iterator[str]:
    """Removes what can be made again; yields a line for each action.

    ``run`` is None if it cannot be loaded; then only the damaged files themselves are removed.
    """
    names: dict[str, None] = {}
    unread = [fault for fault in findings.faults if _is_outage(folder, fault)]
    faults = [fault for fault in findings.faults if fault not in unread]
    if run is not None:
        for fault in faults:
            if fault.entry is not None:
                yield _correct_entry(run, *fault.entry)
        names |= dict.fromkeys(_derived(run, faults))
    for fault in faults:
        if fault.kind in (DAMAGED, STRAY) and fault.entry is None:
            names[fault.name] = None
    if layout.HISTORY in names:
        names.pop(layout.HISTORY)
        yield _remove_torn_lines(folder)
    if layout.LEDGER in names and run is not None:  # its entries are corrected by now
        names.pop(layout.LEDGER)
        run.ledger.write()
        yield f"corrected: {layout.LEDGER}"
    for name in names:
        folder.delete(name)
    _forget_damaged(folder, set(names))
    yield from (f"removed: {name}" for name in [*names][:_SHOWN])
    if len(names) > _SHOWN:
        yield f"removed: {len(names) - _SHOWN:,} more"
    left = [*(fault for fault in faults if fault.kind in (FOREIGN, KEPT, LOST)), *unread]
    yield from (f"left alone: {fault.name}: {fault.reason}" for fault in left[:_SHOWN])
    yield _verdict(findings, len(names), len(left))


def _is_outage(folder: Folder, fault: Fault) -> bool:
    """True if the storage cannot be read now, while the file may be intact.

    Nothing is removed because of an outage: an unreadable file is read once more.
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


def _verdict(findings: Findings, removed: int, left: int) -> str:
    if not findings.faults:
        return "nothing to repair"
    parts = [f"files removed: {removed:,}"]
    if left:
        parts.append(f"left to you: {left:,}")
    if left < len(findings.faults):
        parts.append("tgate-batch render with the run's config makes what is missing again")
    return "; ".join(parts)


def _correct_entry(run: Run, folder: str, right: layout.Settings | None) -> str:
    """Corrects an entry of the ledger; one without known settings is cleared with its files."""
    if right is not None:
        run.ledger.record(folder, right)
        return f"corrected: the ledger's entry of {folder}"
    run.ledger.clear(folder)
    return f"cleared: {folder}, because the settings of its files are not known"


def _derived(run: Run, faults: list[Fault]) -> Iterator[str]:
    """Yields the files that were derived from damaged or missing ones."""
    shards: set[tuple[str, str, int]] = set()  # whose images are damaged or missing
    arms: set[tuple[str, str]] = set()  # whose sums are
    for fault in faults:
        if fault.kind not in (DAMAGED, MISSING):
            continue
        role = _role(fault)
        if role is None or role.model is None or role.arm is None:
            continue
        if role.kind == "images":
            shards.add((role.model, role.arm, role.number))
        if role.kind != "scores":
            arms.add((role.model, role.arm))
    baseline = run.config.baseline
    arms |= {(model, arm) for model, one in arms if one == baseline for arm in run.config.arms}
    for folder in (layout.FEATURES, layout.MEASURED):
        for name in run.folder.names(folder):
            role = layout.role_of(name)
            if role is not None and _is_derived(run, role, shards):
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


def _role(fault: Fault) -> FileRole | None:
    """Returns the role of a faulty file, or of the folder of a wrong entry."""
    if fault.entry is None:
        return layout.role_of(fault.name)
    if fault.entry[1] is not None:
        return None  # the files are right
    return layout.role_of_folder(fault.entry[0])


def _pair(role: FileRole) -> tuple[str, str]:
    return str(role.model), str(role.arm)


def _is_derived(run: Run, role: FileRole, shards: set[tuple[str, str, int]]) -> bool:
    """True if a measurement is of removed images, or is paired with a baseline's."""
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


def _forget_damaged(folder: Folder, names: set[str]) -> None:
    """Removes deleted files from the list of damaged ones, because they are missing now."""
    with suppress(ValueError, OSError):
        damaged = runs.damaged_files(folder)
        if names & damaged.keys():
            runs.note_damaged(folder, {n: why for n, why in damaged.items() if n not in names})


def _remove_torn_lines(folder: Folder) -> str:
    lines = folder.read(layout.HISTORY).splitlines()
    entries = [line + b"\n" for line in lines if is_entry(line)]
    folder.write(layout.HISTORY, b"".join(entries))
    return f"corrected: {layout.HISTORY}, {len(lines) - len(entries)} lines removed"
