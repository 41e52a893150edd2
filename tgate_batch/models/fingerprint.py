"""The fingerprint of a checkpoint: one digest of all the files that loading it reads.

It stays where a folder is renamed, copied, or comes out of the hub's cache; it changes with a
weight, a tokenizer or a setting. Weights are hashed at about 1 GB/s; in the hub's cache they carry
their sha256 as their name.
"""

import json
import re
from hashlib import sha256
from pathlib import Path

from tgate_batch.config import Model
from tgate_batch.metrics.weights import file_sha256
from tgate_batch.models.checkpoint import locate_checkpoint
from tgate_batch.models.files import list_model_files

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(model: Model, dtype: str) -> str | None:
    """sha256 over the names and contents of what ``load_pipeline`` reads for this resolved dtype.

    None for a hub checkpoint that is not, or not whole, in the local cache: ask again once it is
    loaded. Raises UserError for a folder that is not there or not to be loaded.
    """
    locate_checkpoint(model)
    read = list_model_files(model, dtype)
    if read is None:
        return None
    digests = {name: _sha256_of(file) for name, file in read.hashed().items()}
    return sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _sha256_of(file: Path) -> str:
    """Of the content; in the hub's cache large files link to blobs that are named by it."""
    from huggingface_hub import constants

    target, cache = file.resolve(), Path(constants.HF_HUB_CACHE).resolve()
    is_blob = target.parent.name == "blobs" and target.is_relative_to(cache)
    if is_blob and _SHA256.fullmatch(target.name):
        return target.name
    return file_sha256(target)
