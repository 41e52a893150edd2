"""Loads the weights of a metric's network from files, as tensors only.

They are a torch file, or a folder as transformers' ``save_pretrained`` writes it: ``config.json``
and safetensors. Nothing here downloads.
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
    """The state dict in a file; raises UserError where it is missing, damaged or something else.

    ``weights_only`` keeps a file from running code.
    """
    import torch

    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"weights file {path} is not there")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and end-of-file faults have no common parent
        raise UserError(f"weights file {path} cannot be read (cut off?): {_line(error)}") from None
    if not (
        isinstance(weights, dict) and all(isinstance(v, torch.Tensor) for v in weights.values())
    ):
        raise UserError(f"weights file {path} holds no plain dict of tensors")
    return weights


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file; raises UserError if it cannot be read.

    A file of the same path, size and time of change is read once a process.
    """
    try:
        file = Path(path).expanduser().resolve()
        state = file.stat()
        key = (str(file), state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in _known:
            with file.open("rb") as stream:
                _known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, RuntimeError) as error:  # the latter of a link to itself
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None
    return _known[key]


def unlike_promised(what: str, where: str, here: str | None, promised: str) -> str:
    """The line that says that this machine's weights are not those that a run was started with."""
    return (
        f"{what}: {socket.gethostname()} has other weights at {where} (sha256 {str(here)[:16]}) "
        f"than the run was started with (sha256 {promised[:16]}). Fix: put the same files on every "
        "machine, and run the same command again"
    )


def folder_sha256(folder: Path, patterns: Sequence[str]) -> str:
    """sha256 over the name and sha256 of each file of some patterns, in the order of names.

    Raises UserError where there is no such file.
    """
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{folder} has no file of {', '.join(patterns)}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def pickled_only(folder: Path) -> str | None:
    """Why a checkpoint's folder is refused, whose weights are pickles; None: it has others."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    found = next((name for name in names if name.endswith(_PICKLED)), None)
    if found is None or any(name.endswith(".safetensors") for name in names):
        return None
    return (
        f"{folder} has its weights in {found}, a pickle, which may run code when it is read; where "
        "you trust it, save it as safetensors (save_pretrained does), and give that"
    )


def open_checkpoint(
    path: str | Path | None, extractor: str, published: str, model_types: Sequence[str]
) -> tuple[Path, dict[str, Any]]:
    """The folder and the content of its ``config.json``.

    ``published`` is the hub id of what is expected there. Raises UserError, which says what to do,
    where no folder is given, where it has no config or no safetensors, and where the checkpoint is
    of another type or quantised.
    """
    hint = f"give the local folder of {published} or of another {model_types[0]} checkpoint"
    if not path:
        raise UserError(f"extractor {extractor} has no default place of its weights; {hint}")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "is not there"
        raise UserError(f"{folder} {found}, and extractor {extractor} downloads nothing; {hint}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no readable config.json ({_line(error)}); {hint}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in model_types:
        raise UserError(f"{folder} is a checkpoint of type {kind!r}, not {model_types[0]}; {hint}")
    if "quantization_config" in config:
        raise UserError(f"{folder} is quantised, which changes the features; {hint}")
    if refused := pickled_only(folder):
        raise UserError(refused)
    if not _safetensors(folder):
        raise UserError(
            f"{folder} has no model.safetensors, and other formats are not read; save the "
            "checkpoint as safetensors, as transformers' save_pretrained does"
        )
    return folder, config


def load_checkpoint(
    kind: Any,
    config_of: Callable[[dict[str, Any]], Any],
    settings: dict[str, Any],
    folder: Path,
    skipped: tuple[str, ...],
) -> Any:
    """A network of transformers in float32, ready for use, with the weights of a folder.

    ``kind`` is its class, ``config_of`` makes its config of the content of ``config.json``. Weights
    whose names begin with one of ``skipped`` are not read. Raises UserError where a file is
    damaged, and where a weight is missing, left over or of another shape: no weight is ever left
    at random.
    """
    import torch

    try:
        weights = _read_safetensors(folder, skipped)
    except Exception as error:  # safetensors' faults and the system's have no common parent
        raise UserError(
            f"weights in {folder} cannot be read (cut off?): {_line(error)}; copy them again"
        ) from None
    try:
        with _quiet_transformers():
            network, found = kind.from_pretrained(
                None,  # with a config and weights in hand it looks for no file
                config=config_of(settings),
                state_dict=weights,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, in one line
                attn_implementation="sdpa",
                dtype=torch.float32,
            )
    except Exception as error:  # what a wrong config breaks has no common parent
        raise UserError(
            f"{folder} does not make a {kind.__name__}: {_line(error)}; its config.json has to be "
            "that of its weights"
        ) from None
    faults = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": sorted(str(key[0]) for key in found["mismatched_keys"]),
        "left over": sorted(found["unexpected_keys"]),
    }
    told = [f"{len(keys)} {what} ({keys[0]})" for what, keys in faults.items() if keys]
    if told:
        raise UserError(
            f"weights in {folder} do not match its config.json: {', '.join(told)}. Fix: give a "
            "complete checkpoint"
        )
    return network.eval().requires_grad_(False)


def unlike(config: Any, published: Mapping[str, Any]) -> str:
    """Settings of a config that are not as published: "patch_size 8, not 14"; empty: none."""
    return ", ".join(
        f"{key} {getattr(config, key)}, not {value}"
        for key, value in published.items()
        if getattr(config, key) != value
    )


def _safetensors(folder: Path) -> list[Path]:
    """The one file, or else all parts."""
    whole = folder / CHECKPOINT_FILES[1]
    return [whole] if whole.is_file() else sorted(folder.glob(CHECKPOINT_FILES[2]))


def _read_safetensors(folder: Path, skipped: tuple[str, ...]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    weights = {}
    for file in _safetensors(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no dict)
                if not name.startswith(skipped):
                    weights[name] = opened.get_tensor(name).float()
    return weights


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its table of weights that do not fit and its progress bar."""
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
