"""Which files ``prompts.path`` means: a file, a pattern, a folder, or several of these in order."""

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator

from tgate_batch.config import Prompts, source_of
from tgate_batch.errors import UserError, one_line
from tgate_batch.prompts.formats import KNOWN, READERS
from tgate_batch.prompts.source import PromptFile
from tgate_batch.storage import without_credentials

_NAMED = 3  # of many paths


def sources(spec: Prompts) -> list[PromptFile]:
    """The files, in the order given; those of a pattern or a folder by name.

    A name that is no pattern and no folder is one file, whether it is there or not. Raises
    UserError, naming the place searched, for a pattern or a folder that holds none.
    """
    return [source for path in paths(spec) for source in _found(path)]


def paths(spec: Prompts) -> tuple[str, ...]:
    return (spec.path,) if isinstance(spec.path, str) else spec.path


def name_paths(spec: Prompts) -> str:
    """The paths as a message has them: the first ones, without secrets."""
    all_of_them = paths(spec)
    first = [one_line(without_credentials(path)) for path in all_of_them[:_NAMED]]
    more = len(all_of_them) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _found(path: str) -> list[PromptFile]:
    if (how := source_of(path)) is not None and not os.path.exists(path):
        raise UserError(f"prompts.path: {path} is not here: {how}")
    try:
        source = PromptFile.of(path)
        there = source.name and source.fault() is None
        if there or path == "demo":
            return [source]
        if _is_folder(source):
            where = f"{source.location}/{source.name}".rstrip("/")
            found = list(_in_folder(source, where))
            return _checked(found, source, "is a folder without a prompt file", where)
        if _is_pattern(source):
            found = list(_matching(source))
            return _checked(found, source, "matches no prompt file", source.location)
    except UserError as error:
        raise UserError(f"prompts file {error}") from None
    return [source]


def _checked(
    found: list[PromptFile], source: PromptFile, fault: str, where: str
) -> list[PromptFile]:
    if not found:
        raise UserError(f"{source} {fault} ({KNOWN}; looked in {where})")
    return found


def _is_folder(source: PromptFile) -> bool:
    if source.folder.local:
        try:
            return stat.S_ISDIR(os.stat(source.folder.path(source.name)).st_mode)
        except (OSError, ValueError):
            return False
    return not source.name or source.folder.has_entry(source.name)


def _is_pattern(source: PromptFile) -> bool:
    """A URI's ``?`` begins its options, so there only ``*`` and ``[`` stand for others."""
    written = source.folder.path(source.name)
    return glob.has_magic(written if source.folder.local else written.replace("?", ""))


def _in_folder(source: PromptFile, where: str) -> Iterator[PromptFile]:
    """Its files of a known kind, but for hidden ones and those in folders below."""
    folder = source.folder.within(source.name) if source.name else source.folder
    names = sorted(os.listdir(folder.path(""))) if folder.local else folder.names("")
    for name in names:
        found = PromptFile(f"{where}/{name}", folder, name)
        if "/" not in name and not name.startswith(".") and found.suffix in READERS:
            yield found.as_member(name)


def _matching(source: PromptFile) -> Iterator[PromptFile]:
    if source.folder.local:
        pattern = source.folder.path(source.name)
        above = os.path.dirname(pattern)
        while glob.has_magic(above):
            above = os.path.dirname(above)
        for path in sorted(glob.glob(pattern, recursive=True)):
            if not os.path.isdir(path):
                yield PromptFile.of(path).as_member(os.path.relpath(path, above))
        return
    for name in source.folder.names(""):
        if "/" not in name and fnmatch.fnmatchcase(name, source.name):
            found = PromptFile(f"{source.location}/{name}", source.folder, name)
            yield found.as_member(name)
