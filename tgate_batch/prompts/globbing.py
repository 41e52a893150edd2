"""Finds the files of ``prompts.path``: a file, a pattern, a folder, or a list of these."""

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
    """Returns the files in the given order; those of a pattern or a folder sorted by name.

    Another name is one file, which need not exist. Raises UserError, with the folder that was
    searched, for a pattern or a folder without prompt files.
    """
    return [source for path in paths(spec) for source in _files(path)]


def paths(spec: Prompts) -> tuple[str, ...]:
    return (spec.path,) if isinstance(spec.path, str) else spec.path


def name_paths(spec: Prompts) -> str:
    """Returns the first paths for a message, without secrets."""
    first = [one_line(without_credentials(path)) for path in paths(spec)[:_NAMED]]
    more = len(paths(spec)) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _files(path: str) -> list[PromptFile]:
    if (how := source_of(path)) is not None and not os.path.exists(path):
        raise UserError(f"prompts.path: {path} is not here: {how}")
    try:
        source = PromptFile.of(path)
        exists = source.name and source.fault() is None
        if exists or path == "demo":
            return [source]
        if _is_folder(source):
            where = f"{source.location}/{source.name}".rstrip("/")
            files, fault = list(_in_folder(source, where)), "is a folder without a prompt file"
        elif _is_pattern(source):
            where = source.location
            files, fault = list(_matching(source)), "matches no prompt file"
        else:
            return [source]
        if not files:
            raise UserError(f"{source} {fault} ({KNOWN}; looked in {where})")
        return files
    except UserError as error:
        raise UserError(f"prompts file {error}") from None


def _is_folder(source: PromptFile) -> bool:
    if source.folder.local:
        try:
            return stat.S_ISDIR(os.stat(source.folder.path(source.name)).st_mode)
        except (OSError, ValueError):
            return False
    return not source.name or source.folder.has_entry(source.name)


def _is_pattern(source: PromptFile) -> bool:
    """Returns True for a pattern; in a URI, ``?`` begins the options and matches nothing."""
    written = source.folder.path(source.name)
    return glob.has_magic(written if source.folder.local else written.replace("?", ""))


def _in_folder(source: PromptFile, where: str) -> Iterator[PromptFile]:
    """Yields the folder's files of known formats, without hidden ones and subfolders."""
    folder = source.folder.within(source.name) if source.name else source.folder
    names = sorted(os.listdir(folder.path(""))) if folder.local else folder.names("")
    for name in names:
        file = PromptFile(f"{where}/{name}", folder, name)
        if "/" not in name and not name.startswith(".") and file.suffix in READERS:
            yield file.as_member(name)


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
            yield PromptFile(f"{source.location}/{name}", source.folder, name).as_member(name)
