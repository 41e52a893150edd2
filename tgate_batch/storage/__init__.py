"""Access to outputs, prompts and references on a disk or in an object store, by ``Folder``."""

from tgate_batch.errors import StorageError
from tgate_batch.storage.credentials import without_credentials
from tgate_batch.storage.folder import Folder, is_temporary, map_concurrently, stays_inside
from tgate_batch.storage.outages import is_lasting, is_outage, worker_hint

__all__ = [
    "Folder",
    "StorageError",
    "is_lasting",
    "is_outage",
    "is_temporary",
    "map_concurrently",
    "stays_inside",
    "without_credentials",
    "worker_hint",
]
