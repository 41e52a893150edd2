"""A storage in trouble: told from a damaged file, waited for, and said in one line."""

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from tgate_batch import console
from tgate_batch.errors import StorageError
from tgate_batch.storage.credentials import without_credentials

PATIENCE = 90.0  # seconds that a storage may be away
_LONGEST_PAUSE = 8.0
_SAID_AT = 4.0  # the pause before which a warning says what is waited for

# Of a disk or a mounted folder: full, read-only, closed to us, or gone. An input or output error
# (EIO) is a bad spot of a disk, and so damage of a file.
_TROUBLE = {
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EMFILE", "ENFILE", "EBUSY"),
        *("ESTALE", "ENOTCONN", "ENODEV", "ENXIO", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNREFUSED", "ECONNRESET", "ENETDOWN", "ENETUNREACH", "EREMOTEIO", "ENOLINK"),
    )
    if hasattr(errno, name)
}
# Of these, what does not end by waiting, and what concerns the whole disk whatever the file is.
_LASTING = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM")
    if hasattr(errno, name)
}
_OF_THE_DISK = {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS") if hasattr(errno, name)
}
_AWS = re.compile(
    r"AWS Error (?P<code>\w+(?: \(.*?\))?) during (?P<call>\w+) operation: (?P<say>.*)"
)
_GOOGLE = re.compile(r"google::cloud::Status\((?P<code>\w+): (?P<say>.*?)(?: error_info=|\)$|$)")
_NO_BUCKET = re.compile(r"NO_SUCH_BUCKET|bucket does not exist|ContainerNotFound", re.IGNORECASE)
_DENIED = re.compile(
    r"ACCESS_?DENIED|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|"
    r"SIGNATURE|EXPIRED_?TOKEN|UNRECOGNIZED_CLIENT|HTTP status (?:30\d|40[013])|"
    r"Authoriz(?:ation|e)|Authentication",
    re.IGNORECASE,
)

Answer = TypeVar("Answer")


def is_outage(error: BaseException) -> bool:
    """Whether an error is the storage's, and not of the work: later, the same may succeed."""
    return isinstance(error, StorageError | ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _TROUBLE
    )


def is_lasting(error: BaseException) -> bool:
    """Whether an outage does not end by waiting: a full or read-only disk, a right that lacks."""
    if isinstance(error, StorageError):
        return error.lasting
    return isinstance(error, OSError) and error.errno in _LASTING


def concerns_all_files(error: OSError) -> bool:
    """Whether it is the disk that is full or read-only, so that no single file is to be named."""
    return error.errno in _OF_THE_DISK


def for_workers(error: BaseException) -> str:
    """What to add where a worker meets an error that the driver does not: a sentence, or none."""
    if not (isinstance(error, StorageError) and error.denied):
        return ""
    return (
        "credentials of this machine do not reach the workers by themselves: give them to the "
        "cluster, or to the job with ray job submit --runtime-env-json '{\"env_vars\": {...}}'"
    )


def as_storage_error(where: str, done: str, error: OSError) -> StorageError:
    """The error of a storage as one line; ``done``: what could not be done, e.g. "written"."""
    text = without_credentials(" ".join(str(error).split()))
    denied = False
    if error.errno in _TROUBLE:
        reason, advice = error.strerror or text, "make room or give the rights, or another place"
    elif isinstance(error, FileNotFoundError) or _NO_BUCKET.search(text):
        reason, advice = "there is no such bucket", "make the bucket, or name another"
        denied = True
    elif _DENIED.search(text):
        reason = f"the storage refuses it ({_short(text)})"
        advice = "give credentials that may write, read, list and delete there"
        denied = True
    else:
        reason = f"the storage does not answer as it should ({_short(text)})"
        advice = "look after endpoint and network, then the same command goes on"
    lasting = denied or is_lasting(error)
    return StorageError(f"{where} cannot be {done}: {reason}; {advice}", denied, lasting=lasting)


def _short(text: str) -> str:
    """What went wrong, out of the long sentences that clients of object stores make of it."""
    if (found := _AWS.search(text)) is not None:
        say = found["say"].rpartition("Details: ")[2]
        say = re.sub(r" ?\(Request ID: \w+\)|curlCode: \d+, ", "", say)
        text = f"{found['call']}: {found['code']}, {say}"
    elif (found := _GOOGLE.search(text)) is not None:
        say = found["say"].removeprefix("Retry policy exhausted, with a last message of ")
        text = f"{found['code']}, {say}"
    return text[:200].rstrip(" .")


def retrying(where: str, done: str, call: Callable[[], Answer], patience: float) -> Answer:
    """What an object store answers. While it is away, it is asked again for ``patience`` seconds.

    Raises FileNotFoundError where there is no such file, and StorageError for all else: what a
    store says of a request is never about what a file holds.
    """
    until = time.monotonic() + patience
    pause = 0.5
    while True:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            found = as_storage_error(where, done, error)
            found.store = True
        if found.denied or time.monotonic() + pause > until:
            raise found
        if pause == _SAID_AT:
            trouble = str(found).rpartition("; ")[0]
            console.warning(f"{trouble}; waiting for it")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
