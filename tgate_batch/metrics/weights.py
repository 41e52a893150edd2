"""Weights of a metric's network, from a file that is only ever read as tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_batch.errors import UserError

if TYPE_CHECKING:
    import torch


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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"weights file {path} cannot be read (cut off?): {reason}") from None
    if not (
        isinstance(weights, dict) and all(isinstance(v, torch.Tensor) for v in weights.values())
    ):
        raise UserError(f"weights file {path} holds no plain dict of tensors")
    return weights


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file; raises UserError where it cannot be read."""
    try:
        with open(Path(path).expanduser(), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
