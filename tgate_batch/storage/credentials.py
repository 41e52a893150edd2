"""Removes user names, passwords and keys from URIs before they are shown or stored."""

import re

# After a colon everything up to the last @ may be a secret: without escapes it may contain a /.
_USER_INFO = re.compile(r"(\w+://)(?:[^/@:\s\"']*:[^\s\"']*@|[^/@\s]*@)")
_UNESCAPED = re.compile(r"\w+://[^/@:\s]*:(?!\d+/)[^/@\s]*/.*@")
_SECRET_PARAMETER = re.compile(
    r"(?<=[?&])[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*&?|"
    r"&[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*$",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Returns the text without the user names, passwords and keys of the URIs in it.

    Example::

        without_credentials("s3://key:secret@bucket/run")  # "s3://bucket/run"
    """
    return _SECRET_PARAMETER.sub("", _USER_INFO.sub(r"\1", text))


def is_unescaped(uri: str) -> bool:
    """Returns True if the secret in a URI contains a ``/``, so that its end is unknown."""
    return _UNESCAPED.match(uri) is not None
