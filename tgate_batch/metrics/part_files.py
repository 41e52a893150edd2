"""Lists and checks the files of a folder that a loader may read.

A folder is one network, tokenizer or scheduler, as written by ``save_pretrained`` of diffusers and
transformers. Their loaders follow references in it: an index names more files, a link leads
elsewhere, an adapter names another model. ``listed`` refuses references out of the folder or to
anything but safetensors. ``laid_out`` makes a folder of links to only the listed files, for the
loader to read. So a file that is not listed, and thus not hashed, cannot be loaded.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tgate_batch.errors import UserError, one_line
from tgate_batch.metrics.weights import pickled_only

_SHARD = re.compile(r"-\d{5}-of-(\d{5})")  # of weights in several files
_SETTINGS = (".json", ".txt", ".model", ".jinja")
LINKS = "tgate-batch-links-"  # prefix of the name of a folder of links
_ADAPTER = "adapter_config.json"  # transformers would load the model that it names


@dataclass(frozen=True)
class PartFiles:
    """The files of a folder to read: configurations and tokenizers, weights with their index."""

    settings: tuple[Path, ...] = ()
    weights: tuple[Path, ...] = ()  # of one variant
    variant: str = ""  # e.g. "fp16"; empty if the weights are plain
    lacks: str | None = None  # a missing file of weights that the index names

    @property
    def files(self) -> tuple[Path, ...]:
        return self.settings + self.weights

    @property
    def is_network(self) -> bool:
        return any(file.name == "config.json" for file in self.settings)

    @property
    def has_weights(self) -> bool:
        return any(file.suffix == ".safetensors" for file in self.weights)

    @property
    def is_whole(self) -> bool:
        """True if its config exists, and for a network all shards of its weights."""
        shards = [match for file in self.weights if (match := _SHARD.search(file.name))]
        if shards and len(shards) != int(shards[0][1]):
            return False
        is_described = any(file.name.endswith("config.json") for file in self.settings)
        return self.has_weights == self.is_network and is_described and self.lacks is None

    def links(self) -> dict[str, Path]:
        """Returns the files by the names that a loader expects: weights without their variant."""
        links = {file.name: file for file in self.settings}
        for file in self.weights:
            is_shard = file.suffix == ".safetensors" and _SHARD.search(file.name)
            plain = file.name.replace(f".{self.variant}", "", 1) if self.variant else file.name
            links[file.name if is_shard else plain] = file
        return links


def listed(
    folder: Path,
    variant: str | None = None,
    root: Path | None = None,
    weights: bool = True,
    whole: bool = True,
) -> PartFiles:
    """Lists the files of a folder that a loader may read; without ``weights`` only configurations.

    Weights are those of the variant, else the plain ones, else those of the only existing variant.
    ``root``: no file may be outside this folder. Raises UserError for several variants of which
    none is chosen, for references out of the folder or to other formats, and, if ``whole``, for an
    index that names a missing file.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    settings = tuple(file for file in files if _is_setting(file.name))
    part = PartFiles(settings)
    if weights:
        part = PartFiles(settings, *_of_one_variant(folder, files, variant))
        part = replace(part, lacks=_missing_shard(folder, part))
    if whole and part.lacks is not None:
        raise UserError(
            f"{folder} has no {one_line(part.lacks, 80)}, which its index names. Fix: copy the "
            "whole checkpoint"
        )
    _check_links(folder if root is None else root, part)
    for file in settings:
        if file.name == _ADAPTER:
            raise UserError(
                f"{file} would make the loader read another model. Fix: merge the adapter into the "
                "weights, or remove the file"
            )
        if file.name == "tokenizer_config.json":
            _check_names(file)
    return part


@contextmanager
def laid_out(links: Mapping[str, Path]) -> Iterator[Path]:
    """Makes a temporary folder of links, by relative name, for a loader in the block."""
    with tempfile.TemporaryDirectory(prefix=LINKS) as folder:
        for name, file in links.items():
            link = Path(folder, name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(folder)


def variant_in(name: str) -> str:
    """Returns ``fp16`` for ``model.fp16.safetensors``, its shards and index; "" for a plain one."""
    _, *words = _SHARD.sub("", name).split(".")
    return ".".join(word for word in words if word not in ("safetensors", "index", "json"))


def _is_setting(name: str) -> bool:
    is_of_weights = ".index." in name or ".safetensors" in name
    return name.endswith(_SETTINGS) and not is_of_weights


def _of_one_variant(
    folder: Path, files: Sequence[Path], variant: str | None
) -> tuple[tuple[Path, ...], str]:
    """The weights to read with their index, and their variant."""
    by_variant: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix == ".safetensors" or ".safetensors.index." in file.name:
            by_variant.setdefault(variant_in(file.name), []).append(file)
    whole = {
        name: members
        for name, members in by_variant.items()
        if any(file.suffix == ".safetensors" for file in members)
    }
    if not whole and (refused := pickled_only(folder)):
        raise UserError(refused)
    chosen = next((name for name in (variant, "") if name is not None and name in whole), None)
    if chosen is None and len(whole) > 1:
        raise UserError(
            f"{folder} has weights of the variants {', '.join(sorted(whole))} and no plain ones. "
            "Fix: give one of them as variant"
        )
    if chosen is None:
        chosen = next(iter(whole), "")
    return tuple(by_variant.get(chosen, ())), chosen


def _missing_shard(folder: Path, part: PartFiles) -> str | None:
    """A missing file that the index names; None if all exist.

    Raises UserError for an index that names anything but safetensors in its own folder.
    """
    existing = {file.name for file in part.weights if file.suffix == ".safetensors"}
    shards = {name for name in existing if _SHARD.search(name)}
    for index in (file for file in part.weights if file.suffix == ".json"):
        try:
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            named = {str(name) for name in named}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{index} is not an index of weights ({type(error).__name__})"
            ) from None
        for name in sorted(named - existing):
            is_pickle = not name.endswith(".safetensors")
            if is_pickle or "/" in name or "\\" in name:
                why = "only safetensors are read" if is_pickle else "that is not a file name"
                raise UserError(
                    f"{index} names {one_line(name, 80)}, and {why}. Fix: give the whole "
                    "checkpoint as safetensors"
                )
            return name
        if left := sorted(shards - named):
            raise UserError(
                f"{index} does not name {left[0]}, which is in {folder}. Fix: give the index "
                "that belongs to these files"
            )
    return None


def _check_links(root: Path, part: PartFiles) -> None:
    """Raises UserError for a link out of the folder; in a hub cache, out of the cache's model."""
    root = root.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    for file in part.files:
        if not file.resolve().is_relative_to(root):
            raise UserError(
                f"{file} is a link to {file.resolve()}, outside the checkpoint's folder. Fix: put "
                "the file itself there"
            )


def _check_names(file: Path) -> None:
    """Raises UserError for a tokenizer whose configuration names a file outside its folder."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # the loader reports the error
    for key, value in settings.items() if isinstance(settings, dict) else ():
        named = value if isinstance(value, list) else [value]
        if not key.endswith(("_file", "_files")):
            continue
        for name in (each for each in named if isinstance(each, str) and "/" in each):
            try:
                is_there = Path(file.parent, name).exists()
            except (OSError, ValueError):
                continue
            if is_there:
                raise UserError(
                    f"{file}: {key} names {one_line(name, 80)}, outside its folder. Fix: remove "
                    "the key"
                )
