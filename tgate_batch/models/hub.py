"""Hub ids: look them up in the local cache, or fetch their small files with a short timeout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tgate_batch.errors import UserError, one_line

_SECONDS = 5.0  # to answer
_ADVICE = "give a folder, or fetch it where there is a network"
# All that a pipeline is but its weights.
CONFIGURATIONS = ("*.json", "*.txt", "*.model")
# One network, without its variants.
_WEIGHTS = "diffusion_pytorch_model"
NETWORK = (
    "config.json",
    f"{_WEIGHTS}.safetensors",
    f"{_WEIGHTS}.safetensors.index.json",
    f"{_WEIGHTS}-*-of-*.safetensors",
)


def is_local(path: str) -> bool:
    """True if a path of a config is local, not a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()


def cached(hub_id: str, file: str, revision: str | None = None) -> Path | None:
    """The snapshot of a hub id in the local cache, known by one of its files."""
    from huggingface_hub import try_to_load_from_cache

    cached_file = try_to_load_from_cache(hub_id, file, revision=revision)
    if not isinstance(cached_file, str):
        return None
    return Path(cached_file[: -len(file)])


def check(hub_id: str, revision: str | None, key: str) -> None:
    """Raises UserError, which begins with ``key``, where the hub does not give this id.

    It is asked for a few seconds at most.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    problem = f"{key}: {_named(hub_id, revision)} is not on this machine, and the hub"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{problem} is switched off (HF_HUB_OFFLINE); {_ADVICE}")
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=_SECONDS)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise UserError(
            f"{problem} does not give it (status {status}); check the id, or "
            "log in for a gated model"
        ) from None
    except Exception as error:  # of the HTTP library that the hub's client has
        raise UserError(
            f"{problem} cannot be reached ({type(error).__name__}); {_ADVICE}"
        ) from None


def fetched(
    hub_id: str, revision: str | None, key: str, patterns: Sequence[str] = CONFIGURATIONS
) -> Path:
    """The snapshot of a hub id with its small files, fetched; raises UserError as ``check``."""
    from huggingface_hub import snapshot_download

    check(hub_id, revision, key)
    wanted: Any = list(patterns)
    try:
        snapshot = snapshot_download(
            hub_id, revision=revision, allow_patterns=wanted, etag_timeout=_SECONDS
        )
    except Exception as error:  # of the HTTP library that the hub's client has
        raise UserError(
            f"{key}: {_named(hub_id, revision)} cannot be fetched: {one_line(error, 120)}; "
            f"{_ADVICE}"
        ) from None
    return Path(snapshot)


def _named(hub_id: str, revision: str | None) -> str:
    return hub_id if revision is None else f"{hub_id} at {revision}"
