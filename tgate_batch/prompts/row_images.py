"""Reads the images that rows of a prompt set name: only images, from allowed folders."""

import os
from functools import lru_cache

from tgate_batch.errors import UserError, one_line, shown
from tgate_batch.prompts.source import NO_NAME, PromptFile
from tgate_batch.storage import Folder, images, without_credentials


def image_of(source: PromptFile, roots: tuple[str, ...], cell: bytes | str) -> bytes:
    """Returns the encoded image of a cell: its bytes, or those of the file that it names.

    A file must be below the prompt set's folder or one of ``roots``. Raises UserError with the
    fault.
    """
    if isinstance(cell, bytes):
        content, name = cell, "bytes"
    else:
        content, name = _read(_allowed(source, roots, cell), cell), _named(cell)
    if len(content) > images.MOST_BYTES:
        raise UserError(f"{name} has more than {images.MOST_BYTES >> 20} MiB")
    try:
        images.open_image(content)
    except UserError as error:
        raise UserError(f"{name} {error}") from None
    return content


def _named(cell: str) -> str:
    return shown(without_credentials(cell), 200)


def _read(source: PromptFile, cell: str) -> bytes:
    try:
        if fault := source.fault():
            raise UserError(f"{_named(cell)} {fault}")
        with source.stored() as file:
            return file.read(images.MOST_BYTES + 1)
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise UserError(f"{_named(cell)} cannot be read: {reason}") from None


def _allowed(source: PromptFile, roots: tuple[str, ...], cell: str) -> PromptFile:
    """Returns the file that a cell names; raises UserError if it is in no allowed folder."""
    if "\0" in cell:
        raise UserError(f"{_named(cell)} {NO_NAME}")
    for folder in (source.folder, *map(_root, roots)):
        name = _below_disk(source, folder, cell) if folder.local else _below(source, folder, cell)
        if name is not None:
            return PromptFile(cell, folder, name)
    raise UserError(
        f"{_named(cell)} is not below the prompt set's folder ({source.location}) or a folder of "
        "prompts.image_roots. Fix: name its folder there if rows of this set may read it"
    )


def _below_disk(source: PromptFile, folder: Folder, cell: str) -> str | None:
    """Returns the name of a cell's file in a folder on a disk; None if it is elsewhere.

    Links are resolved first. A relative path begins at the prompt set's folder.
    """
    path = cell.removeprefix("file://")
    if "://" in path or (not source.folder.local and not os.path.isabs(path)):
        return None
    start = source.folder.path("") if source.folder.local else "/"
    file = os.path.realpath(os.path.join(start, os.path.expanduser(path)))
    base = os.path.realpath(folder.path(""))
    return os.path.relpath(file, base) if os.path.commonpath([file, base]) == base else None


def _below(source: PromptFile, folder: Folder, cell: str) -> str | None:
    """Returns the name of a cell's object in a folder of a store; None if it is elsewhere.

    Endpoint and credentials are the folder's: a cell with other options is not below it.
    """
    where, _, options = folder.uri.partition("?")
    path, _, asked = cell.partition("?")
    if "://" not in cell:
        name = cell.lstrip("/") if folder is source.folder else ""
    elif asked not in ("", options):
        return None
    else:
        starts = (f"{each.rstrip('/')}/" for each in (where, without_credentials(where)))
        name = next((path[len(start) :] for start in starts if path.startswith(start)), "")
    return name if name and ".." not in name.split("/") else None


@lru_cache
def _root(written: str) -> Folder:
    try:
        return Folder(written if "://" in written else os.path.expanduser(written))
    except UserError as error:
        raise UserError(f"prompts.image_roots: {error}") from None
