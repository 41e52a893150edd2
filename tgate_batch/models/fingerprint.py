"""The fingerprint of a checkpoint: one digest of all the files that loading it reads.

It stays where a folder is renamed, copied, or comes out of the hub's cache; it changes with a
weight, a tokenizer or a setting. Weights are hashed at about 1 GB/s; in the hub's cache they carry
their sha256 as their name.
"""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from tgate_batch.config import Model
from tgate_batch.metrics.weights import file_sha256
from tgate_batch.models.architecture import read_json
from tgate_batch.models.checkpoint import checkpoint, variant_of
from tgate_batch.models.hub import cached, is_local
from tgate_batch.models.loras import files_of
from tgate_batch.models.opened import INDEX, opened

_SHARD = re.compile(r"-\d{5}-of-(\d{5})")  # of weights that lie in several files
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(model: Model, dtype: str) -> str | None:
    """sha256 over the names and contents of what ``load`` reads for this resolved dtype.

    None for a hub checkpoint that is not, or not whole, in the local cache: ask again once it is
    loaded. Raises UserError for a folder that is not there.
    """
    is_one = opened(model)
    where, folder = checkpoint(model, is_one), is_one.folder
    if folder is None:
        return None
    row, index = is_one.row, read_json(folder / INDEX)
    replaced = {part: getattr(model, part) for part in ("unet", "vae")} | {"unet": row.unet}
    replaced = {part: place for part, place in replaced.items() if place is not None}
    variant = variant_of(model, dtype)
    given = {*row.options, *replaced}  # not read from the checkpoint
    parts = {
        name: _read_files(folder / name, variant)
        for name, kind in index.items()
        if isinstance(kind, list) and all(kind) and name not in given
    }
    if is_one.file is not None:  # all weights are in it
        parts = {name: list(_others(files)) for name, files in parts.items()}
    elif not Path(where).is_dir() and not all(map(_whole, parts.values())):
        return None
    for part, place in replaced.items():
        files = _of_part(place)
        if files is None:
            return None
        parts[part] = files
    found = {INDEX: _sha256_of(folder / INDEX)}
    for name, files in parts.items():
        found |= {f"{name}/{file.name}": _sha256_of(file) for file in files}
    if is_one.file is not None:
        found["weights"] = _sha256_of(is_one.file)
    for number in range(len(model.loras)):
        read = files_of(model, number)
        if read is None:
            return None
        found |= {f"loras/{number}/{name}": _sha256_of(file) for name, file in read.items()}
    return sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _of_part(place: str) -> list[Path] | None:
    """What is read of a replaced part; None: it is at a hub, and not whole on this machine."""
    folder = Path(place).expanduser() if is_local(place) else cached(place, "config.json")
    if folder is None:
        return None
    files = _read_files(folder, variant=None)
    return files if _whole(files) or is_local(place) else None


def _read_files(folder: Path, variant: str | None) -> list[Path]:
    """Configurations, tokenizers, and the weights of the variant (the plain ones without it)."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    weights = [file for file in files if ".safetensors" in file.name]
    plain = [file for file in weights if not _variant(file.name)]
    wanted = [file for file in weights if variant and _variant(file.name) == variant]
    return list(_others(files)) + (wanted or plain)


def _others(files: list[Path]) -> Iterator[Path]:
    """All that is read beside weights; the index of weights of another format is not."""
    for file in files:
        is_index = ".index." in file.name or ".safetensors" in file.name
        if file.suffix in (".json", ".txt", ".model") and not is_index:
            yield file


def _variant(name: str) -> str:
    """``fp16`` of ``model.fp16.safetensors``, of its shards and its index; empty: a plain one."""
    _, *words = _SHARD.sub("", name).split(".")
    return ".".join(word for word in words if word not in ("safetensors", "index", "json"))


def _whole(files: list[Path]) -> bool:
    """Whether nothing of a part is missing: its config, and a network's weights in all shards."""
    names = {file.name for file in files}
    weights = [name for name in names if name.endswith(".safetensors")]
    shards = [shard for shard in map(_SHARD.search, weights) if shard]
    if shards and len(shards) != int(shards[0][1]):
        return False
    is_network = "config.json" in names
    return bool(weights) == is_network and any(name.endswith("config.json") for name in names)


def _sha256_of(file: Path) -> str:
    """Of the content; in the hub's cache large files link to blobs that are named by it."""
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    return file_sha256(target)
