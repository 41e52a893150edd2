"""Loads the weights of metrics from files, as tensors only; downloads nothing.

They are a torch file, or a folder as written by transformers' ``save_pretrained``: ``config.json``
and safetensors.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgate_batch.errors import UserError

if TYPE_CHECKING:
    import torch

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # may run code when transformers reads them
_known: dict[tuple[str, int, int, int], str] = {}  # (file, inode, bytes, change) -> sha256
CHECKPOINT_FILES = ("config.json", "model.safetensors", "model-*-of-*.safetensors")


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the state dict in a file; raises UserError if it is missing, damaged or no dict.

    ``weights_only`` prevents a file from running code.
    """
    import torch

    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and end-of-file errors have no common base class
        raise UserError(f"weights file {path} cannot be read (cut off?): {_line(error)}") from None
    if not (
        isinstance(weights, dict) and all(isinstance(v, torch.Tensor) for v in weights.values())
    ):
        raise UserError(f"weights file {path} is not a plain dict of tensors")
    return weights


def file_sha256(path: str | Path) -> str:
    """Returns the hexadecimal SHA-256 of a file; raises UserError if it cannot be read.

    A file of the same path, size and modification time is read once per process.
    """
    try:
        file = Path(path).expanduser().resolve()
        state = file.stat()
        key = (str(file), state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in _known:
            with file.open("rb") as stream:
                _known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    return _known[key]


def unlike_promised(what: str, where: str, here: str | None, promised: str) -> str:
    """Returns the error for weights that differ from those that the run was started with."""
    return (
        f"{what}: {socket.gethostname()} has other weights at {where} (sha256 {str(here)[:16]}) "
        f"than the run was started with (sha256 {promised[:16]}). Fix: put the same files on every "
        "machine, and rerun the same command"
    )


def folder_sha256(folder: Path, patterns: Sequence[str]) -> str:
    """Returns a sha256 over names and digests of the files of some patterns, sorted by name.

    Raises UserError if there are none.
    """
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} has no file of {', '.join(patterns)}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def pickled_only(folder: Path) -> str | None:
    """Returns the error for a checkpoint with only pickled weights; None if it is accepted."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    pickle = next((name for name in names if name.endswith(_PICKLED)), None)
    if pickle is None or any(name.endswith(".safetensors") for name in names):
        return None
    return (
        f"{folder} has its weights in {pickle}, a pickle, which may run code when it is read. Fix: "
        "if you trust it, save it as safetensors with save_pretrained, and give that folder"
    )


def open_checkpoint(
    path: str | Path | None, extractor: str, published: str, model_types: Sequence[str]
) -> tuple[Path, dict[str, Any]]:
    """Returns the folder and the content of its ``config.json``.

    ``published`` is the hub id of the expected checkpoint. Raises UserError if no folder is given,
    if it has no config or no safetensors, or if the checkpoint has another type or is quantised.
    """
    hint = f"give the local folder of {published} or of another {model_types[0]} checkpoint"
    if not path:
        raise UserError(f"extractor {extractor} has no default weights. Fix: {hint}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {state}, and extractor {extractor} downloads nothing. Fix: {hint}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = _line(error)
        raise UserError(f"{folder} has no readable config.json ({why}). Fix: {hint}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in model_types:
        raise UserError(
            f"{folder} is a checkpoint of type {kind!r}, not {model_types[0]}. Fix: {hint}"
        )
    if "quantization_config" in config:
        raise UserError(f"{folder} is quantised, which changes the features. Fix: {hint}")
    if refused := pickled_only(folder):
        raise UserError(refused)
    if not _safetensors(folder):
        raise UserError(
            f"{folder} has no model.safetensors, and other formats are not read. Fix: save the "
            "checkpoint as safetensors, e.g. with transformers' save_pretrained"
        )
    return folder, config


def load_checkpoint(
    kind: Any,
    config_of: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    folder: Path,
    skipped: tuple[str, ...],
) -> Any:
    """Loads a transformers network in float32, ready for use, with the weights of a folder.

    ``kind`` is its class; ``config_of`` makes its config from the content of ``config.json``.
    Weights whose names begin with one of ``skipped`` are not read. Raises UserError if a file is
    damaged, or if a weight is missing, unexpected or of another shape: no weight stays random.
    """
    import torch

    try:
        weights = _read_safetensors(folder, skipped)
    except Exception as error:  # errors of safetensors and of the system have no common base class
        raise UserError(
            f"weights in {folder} cannot be read (cut off?): {_line(error)}. Fix: copy them again"
        ) from None
    try:
        with _quiet_transformers():
            network, info = kind.from_pretrained(
                None,  # with a config and weights it reads no file
                config=config_of(settings),
                state_dict=weights,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                attn_implementation="sdpa",
                dtype=torch.float32,
            )
    except Exception as error:  # errors of a wrong config have no common base class
        raise UserError(
            f"{folder} cannot be loaded as a {kind.__name__}: {_line(error)}. Fix: give the "
            "config.json of its weights"
        ) from None
    faults = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(str(key[0]) for key in info["mismatched_keys"]),
        "left over": sorted(info["unexpected_keys"]),
    }
    problems = [f"{len(keys)} {what} ({keys[0]})" for what, keys in faults.items() if keys]
    if problems:
        raise UserError(
            f"weights in {folder} do not match its config.json: {', '.join(problems)}. Fix: give a "
            "complete checkpoint"
        )
    return network.eval().requires_grad_(False)


def unlike(config: Any, published: Mapping[str, Any]) -> str:
    """Returns settings that are not as published, e.g. "patch_size 8, not 14"; "" if none."""
    return ", ".join(
        f"{key} {getattr(config, key)}, not {value}"
        for key, value in published.items()
        if getattr(config, key) != value
    )


def _safetensors(folder: Path) -> list[Path]:
    """The single file, or else all shards."""
    whole = folder / CHECKPOINT_FILES[1]
    return [whole] if whole.is_file() else sorted(folder.glob(CHECKPOINT_FILES[2]))


def _read_safetensors(folder: Path, skipped: tuple[str, ...]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    weights = {}
    for file in _safetensors(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if not name.startswith(skipped):
                    weights[name] = opened.get_tensor(name).float()
    return weights


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppresses its table of mismatched weights and its progress bar."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
