"""Checks of sums, statistics, scores, the report, and the notes of workers.

Each check returns reasons; none means that the file is intact. Nothing in an archive is unpickled.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from tgate_batch.execute.verify.findings import guarded
from tgate_batch.execute.verify.tables import check_pages
from tgate_batch.output import layout, seal, shapes
from tgate_batch.output.card import is_ours
from tgate_batch.score.partial_sums import ArmSums
from tgate_batch.storage import Folder
from tgate_batch.storage.archives import Archive

_EXTENDED = "withheld"  # the report has more entries in it than the scores
_END_OF_SEALED = b"<!-- sha256"
BROKEN = "its content does not match its digest"


def archive(content: bytes) -> dict[str, np.ndarray]:
    """Reads every array of an ``.npz``, and compares its checksum."""
    return dict(Archive(content))


@guarded
def readable(folder: Folder, name: str) -> list[str]:
    """Checks that a file of any kind can be read, whatever its content."""
    if name.endswith(".parquet"):
        return check_pages(folder, name)
    readers: dict[str, Callable[[bytes], Any]] = {
        ".npz": archive,
        ".json": read_object,
        ".md": bytes.decode,
        ".html": bytes.decode,
    }
    read = readers.get(PurePosixPath(name).suffix, len)
    read(folder.read(name))
    return []


def read_object(content: bytes) -> Any:
    """Returns a JSON file's content; raises ValueError if it does not match its seal."""
    parsed = json.loads(content)
    if seal.is_broken(parsed):
        raise ValueError(BROKEN)
    return parsed


@guarded
def statistics(folder: Folder, name: str) -> list[str]:
    """Checks ``mu`` and ``sigma``, and the other arrays of a reference."""
    arrays = archive(folder.read(name))
    if missing := [key for key in ("mu", "sigma", "count") if key not in arrays]:
        return [f"it has no {' and no '.join(missing)}"]
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        return ["its mu and sigma differ in size"]
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return ["it has values that are not finite"]
    if "about" in arrays:
        json.loads(str(arrays["about"]))
    return []


@guarded
def summary(folder: Folder, name: str, identity: str) -> list[str]:
    """Checks the sums of a chunk."""
    content = folder.read(name)
    archive(content)
    if ArmSums.load(content, identity) is None:
        return ["it sums other measurements than its name says"]
    return []


@dataclass(frozen=True)
class ExpectedCounts:
    """The number of images of an arm, and of rows that failed."""

    images: int
    errors: int

    def differ(self, images: Any, errors: Any) -> list[str]:
        if (images, errors) == (self.images, self.errors):
            return []
        return [
            f"it counts {images} images and {errors} errors, but the rows are {self.images} and "
            f"{self.errors}"
        ]


@guarded
def conclusion(folder: Folder, name: str, counts: ExpectedCounts | None) -> list[str]:
    """Checks an arm's conclusion; ``counts`` is None if they are not known."""
    role, arrays = layout.role_of(name), archive(folder.read(name))
    assert role is not None
    about = json.loads(str(arrays["about"]))
    if about["key"] != [role.model, role.arm]:
        return [f"it is of {' '.join(about['key'])}"]
    sums = {tuple(key): arrays[f"sum-{n}"] for n, key in enumerate(about["sums"])}
    if counts is None:
        return []
    return counts.differ(int(sums["images",]), int(sums["errors",]))


@guarded
def scores(folder: Folder, name: str, counts: ExpectedCounts | None) -> list[str]:
    """Checks an arm's scores; ``counts`` is None if they are not known."""
    role, content = layout.role_of(name), shapes.parse_json(folder.read(name))
    assert role is not None
    broken = [BROKEN] if seal.is_broken(content) else []
    if reasons := shapes.faults(content, shapes.ScoresFile):
        return reasons + broken
    if (content["model"], content["arm"]) != (role.model, role.arm):
        return [f"it is of {content['model']} {content['arm']}", *broken]
    images, errors = content["images"], content["errors"]
    return broken if counts is None else counts.differ(images, errors) + broken


@guarded
def worker(folder: Folder, name: str) -> list[str]:
    """Checks a worker's summary."""
    return shapes.faults(read_object(folder.read(name)), shapes.WorkerFile)


@guarded
def history(folder: Folder, name: str) -> list[str]:
    """Checks that each line is an entry."""
    lines = folder.read(name).splitlines()
    torn = [number for number, line in enumerate(lines, 1) if not is_entry(line)]
    return [f"line {number} is not an entry" for number in torn]


def is_entry(line: bytes) -> bool:
    """True if a line of the history is an intact entry."""
    try:
        return isinstance(read_object(line), dict)
    except ValueError:
        return False


@guarded
def card(folder: Folder, name: str) -> list[str]:
    """Checks the dataset card, unless a user has edited it."""
    content = folder.read(name)
    if not is_ours(content) or _END_OF_SEALED not in content or seal.is_sealed_text(content):
        return []
    return [f"{BROKEN}. Fix: to keep your changes, delete the line with the mark"]


def report(folder: Folder) -> dict[str, list[str]]:
    """Checks the report's files, and its figures against the scores; returns name -> reasons."""
    sealed: list[bool] = []

    def figures() -> list[str]:
        content = json.loads(folder.read(layout.REPORT_JSON))
        sealed.append(seal.KEY in content)
        reasons = [BROKEN] if seal.is_broken(content) else []
        for arm in content["arms"]:
            name = layout.scores(arm["model"], arm["arm"])
            if not folder.exists(name) or scores(folder, name, None):
                continue
            for key, value in json.loads(folder.read(name)).items():
                if key in (_EXTENDED, seal.KEY):
                    continue
                if json.dumps(arm.get(key)) != json.dumps(value):
                    reasons.append(f"its {key} differs from {name}")
        return reasons

    def text(name: str, end: str) -> list[str]:
        content = folder.read(name)
        if any(sealed):  # all three are written together
            return [] if seal.is_sealed_text(content) else [f"it is cut off, or {BROKEN}"]
        whole = content.decode().rstrip()
        return [] if whole and whole.endswith(end) else ["it is cut off"]

    checks = {
        layout.REPORT_JSON: figures,
        layout.REPORT_MARKDOWN: lambda: text(layout.REPORT_MARKDOWN, ""),
        layout.REPORT_PAGE: lambda: text(layout.REPORT_PAGE, "</html>"),
    }
    return {name: guarded(check)() for name, check in checks.items() if folder.exists(name)}
