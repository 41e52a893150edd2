"""Storage outages: detect them, retry, and report them in one line."""

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from tgate_batch import console
from tgate_batch.errors import StorageError, reason_of
from tgate_batch.storage.credentials import without_credentials

PATIENCE = 90.0  # seconds of an outage before the error is raised
_LONGEST_PAUSE = 8.0
_WARN_AT = 4.0  # the pause before which a warning reports the outage


def _codes(names: str) -> set[int]:
    return {getattr(errno, name) for name in names.split() if hasattr(errno, name)}


# A disk or a mounted folder is full, read-only, without permission, or gone. EIO is not among them:
# a bad block of a disk damages a single file.
_WHOLE_DISK = _codes("ENOSPC EDQUOT EROFS")  # concerns every file on it
_LASTING = _WHOLE_DISK | _codes("EFBIG EACCES EPERM")  # waiting does not help
_OUTAGES = _LASTING | _codes(
    "EMFILE ENFILE EBUSY ESTALE ENOTCONN ENODEV ENXIO ETIMEDOUT EHOSTDOWN EHOSTUNREACH "
    "ECONNREFUSED ECONNRESET ENETDOWN ENETUNREACH EREMOTEIO ENOLINK"
)
_AWS = re.compile(
    r"AWS Error (?P<code>\w+(?: \(.*?\))?) during (?P<call>\w+) operation: (?P<text>.*)"
)
_GOOGLE = re.compile(r"google::cloud::Status\((?P<code>\w+): (?P<text>.*?)(?: error_info=|\)$|$)")
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist|ContainerNotFound", re.IGNORECASE)
_DENIED = re.compile(
    r"ACCESS_?DENIED|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|"
    r"SIGNATURE|EXPIRED_?TOKEN|UNRECOGNIZED_CLIENT|HTTP status (?:30\d|40[013])|"
    r"Authoriz(?:ation|e)|Authentication",
    re.IGNORECASE,
)

Result = TypeVar("Result")


def is_outage(error: BaseException) -> bool:
    """Returns True for an error of the storage, after which a later try may succeed."""
    return isinstance(error, StorageError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _OUTAGES
    )


def is_lasting(error: BaseException) -> bool:
    """Returns True if waiting does not end the outage: a full disk, a missing permission."""
    if isinstance(error, StorageError):
        return error.lasting
    return isinstance(error, OSError) and error.errno in _LASTING


def concerns_all_files(error: OSError) -> bool:
    """Returns True if the whole disk is full or read-only, so that no single file is named."""
    return error.errno in _WHOLE_DISK


def worker_hint(error: BaseException) -> str:
    """Returns advice for an error that only workers have: missing credentials; else no text."""
    if not (isinstance(error, StorageError) and error.denied):
        return ""
    return (
        "workers do not get the credentials of this machine. Fix: set them on the cluster, or "
        "submit the job with ray job submit --runtime-env-json '{\"env_vars\": {...}}'"
    )


def as_storage_error(where: str, action: str, error: OSError) -> StorageError:
    """Returns an OSError as a StorageError of one line; ``action``: what failed, as "written"."""
    text = without_credentials(reason_of(error, None))
    denied = False
    if error.errno in _OUTAGES:
        reason, fix = error.strerror or text, "make room, change permissions or use another folder"
    elif denied := isinstance(error, FileNotFoundError) or bool(_NO_BUCKET.search(text)):
        reason, fix = "there is no such bucket", "create the bucket, or name another"
    elif denied := bool(_DENIED.search(text)):
        reason = f"the storage refuses it ({_client_message(text)})"
        fix = "give credentials that may write, read, list and delete there"
    else:
        reason = f"the storage does not answer as it should ({_client_message(text)})"
        fix = "check endpoint and network, then rerun the same command"
    lasting = denied or is_lasting(error)
    return StorageError(
        f"{where} cannot be {action}: {reason}. Fix: {fix}", denied, lasting=lasting
    )


def _client_message(text: str) -> str:
    """Returns the cause from the long error messages of object store clients."""
    if (match := _AWS.search(text)) is not None:
        cause = match["text"].rpartition("Details: ")[2]
        cause = re.sub(r" ?\(Request ID: \w+\)|curlCode: \d+, ", "", cause)
        text = f"{match['call']}: {match['code']}, {cause}"
    elif (match := _GOOGLE.search(text)) is not None:
        cause = match["text"].removeprefix("Retry policy exhausted, with a last message of ")
        text = f"{match['code']}, {cause}"
    return text[:200].rstrip(" .")


def retrying(where: str, action: str, call: Callable[[], Result], patience: float) -> Result:
    """Returns what an object store answers; during an outage it retries for ``patience`` seconds.

    Raises FileNotFoundError if there is no such file, and StorageError for all other errors: an
    error of a request is never evidence of a damaged file.
    """
    until = time.monotonic() + patience
    pause = 0.5
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            outage = as_storage_error(where, action, error)
            outage.store = True
        if outage.denied or time.monotonic() + pause > until:
            raise outage
        if pause == _WARN_AT:
            console.warning(f"{str(outage).partition('. Fix: ')[0]}; waiting for it")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
