"""Where outputs, prompts and references lie: a disk or an object store, through one ``Folder``."""

from tgate_batch.errors import StorageError
from tgate_batch.storage.credentials import without_credentials
from tgate_batch.storage.folder import Folder, is_temporary, stays_inside
from tgate_batch.storage.outages import for_workers, is_lasting, is_outage

__all__ = [
    "Folder",
    "StorageError",
    "for_workers",
    "is_lasting",
    "is_outage",
    "is_temporary",
    "stays_inside",
    "without_credentials",
]
