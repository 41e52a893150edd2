"""Whether sums, statistics, scores and the report are what they should be, and workers' notes.

Each check returns reasons, as those of Parquet files do. Nothing in an archive is unpickled.
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

_ADDED_TO = "withheld"  # of an arm's scores: a report has more reasons in it
_END_OF_SEALED = b"<!-- sha256"
BROKEN = "it is not what its digest was made of"


def archive(content: bytes) -> dict[str, np.ndarray]:
    """Every array of an ``.npz``; reading one compares its checksum."""
    return dict(Archive(content))


def readable(folder: Folder, name: str) -> list[str]:
    """Checks that a file of any kind can be read, whatever it says."""
    if name.endswith(".parquet"):
        return check_pages(folder, name)
    kinds: dict[str, Callable[[bytes], Any]] = {
        ".npz": archive,
        ".json": read_object,
        ".md": bytes.decode,
        ".html": bytes.decode,
    }
    read = kinds.get(PurePosixPath(name).suffix, len)

    def check() -> list[str]:
        read(folder.read(name))
        return []

    return guarded(check)


def read_object(content: bytes) -> Any:
    """A JSON file's content. Raises ValueError where it is not what its seal was made of."""
    found = json.loads(content)
    if seal.is_broken(found):
        raise ValueError(BROKEN)
    return found


def statistics(folder: Folder, name: str) -> list[str]:
    """Checks ``mu`` and ``sigma``, and what a reference's file has beside them."""

    def check() -> list[str]:
        arrays = archive(folder.read(name))
        if lacking := [key for key in ("mu", "sigma", "count") if key not in arrays]:
            return [f"it has no {' and no '.join(lacking)}"]
        mu, sigma = arrays["mu"], arrays["sigma"]
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            return ["its mu and sigma do not fit together"]
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            return ["it has values that are not finite"]
        if "about" in arrays:
            json.loads(str(arrays["about"]))
        return []

    return guarded(check)


def summary(folder: Folder, name: str, identity: str) -> list[str]:
    """Checks the sums of a chunk."""

    def check() -> list[str]:
        content = folder.read(name)
        archive(content)
        if ArmSums.load(content, identity) is None:
            return ["it was added up of other measurements than its name says"]
        return []

    return guarded(check)


@dataclass(frozen=True)
class ExpectedCounts:
    """How many rows of an arm are pictures, and how many failed."""

    images: int
    errors: int

    def differ(self, images: Any, errors: Any) -> list[str]:
        if (images, errors) == (self.images, self.errors):
            return []
        return [
            f"it counts {images} images and {errors} errors; the rows are {self.images} and "
            f"{self.errors}"
        ]


def conclusion(folder: Folder, name: str, counts: ExpectedCounts | None) -> list[str]:
    """Checks what all sums of an arm came down to; ``counts`` None: not known."""

    def check() -> list[str]:
        role, arrays = layout.role_of(name), archive(folder.read(name))
        assert role is not None
        about = json.loads(str(arrays["about"]))
        if about["key"] != [role.model, role.arm]:
            return [f"it is of {' '.join(about['key'])}"]
        sums = {tuple(key): arrays[f"sum-{n}"] for n, key in enumerate(about["sums"])}
        if counts is None:
            return []
        return counts.differ(int(sums["images",]), int(sums["errors",]))

    return guarded(check)


def scores(folder: Folder, name: str, counts: ExpectedCounts | None) -> list[str]:
    """Checks an arm's scores; ``counts`` None: not known."""

    def check() -> list[str]:
        role, content = layout.role_of(name), shapes.parse_json(folder.read(name))
        assert role is not None
        broken = [BROKEN] if seal.is_broken(content) else []
        if reasons := shapes.faults(content, shapes.ScoresFile):
            return reasons + broken
        if (content["model"], content["arm"]) != (role.model, role.arm):
            return [f"it is of {content['model']} {content['arm']}", *broken]
        found = content["images"], content["errors"]
        return broken if counts is None else counts.differ(*found) + broken

    return guarded(check)


def worker(folder: Folder, name: str) -> list[str]:
    """Checks where a worker's time went."""

    def check() -> list[str]:
        content = read_object(folder.read(name))
        return shapes.faults(content, shapes.WorkerFile)

    return guarded(check)


def history(folder: Folder, name: str) -> list[str]:
    """Checks that each line is an entry."""

    def check() -> list[str]:
        lines = folder.read(name).splitlines()
        torn = [number for number, line in enumerate(lines, 1) if not is_entry(line)]
        return [f"line {number} is no entry" for number in torn]

    return guarded(check)


def is_entry(line: bytes) -> bool:
    """Whether a line of the history is an entry, as it was written."""
    try:
        return isinstance(read_object(line), dict)
    except ValueError:
        return False


def card(folder: Folder, name: str) -> list[str]:
    """Checks the dataset card, unless it is a person's."""

    def check() -> list[str]:
        content = folder.read(name)
        if not is_ours(content) or _END_OF_SEALED not in content or seal.is_sealed_text(content):
            return []
        return [f"{BROKEN}; take out the line that says whose it is, and it stays as it is"]

    return guarded(check)


def report(folder: Folder) -> dict[str, list[str]]:
    """Checks the report's files, and that its figures are those of the scores: name -> reasons."""
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
                if key in (_ADDED_TO, seal.KEY):
                    continue
                if json.dumps(arm.get(key)) != json.dumps(value):
                    reasons.append(f"its {key} is not that of {name}")
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
    return {name: guarded(check) for name, check in checks.items() if folder.exists(name)}
