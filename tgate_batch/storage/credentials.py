"""No user name, password or key of a URI is ever shown or kept."""

import re

# After a colon all up to the last @ may be a secret: one that is not escaped has / in it.
_USER_INFO = re.compile(r"(\w+://)(?:[^/@:\s\"']*:[^\s\"']*@|[^/@\s]*@)")
_UNESCAPED = re.compile(r"\w+://[^/@:\s]*:(?!\d+/)[^/@\s]*/.*@")
_SECRET_PARAMETER = re.compile(
    r"(?<=[?&])[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*&?|"
    r"&[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*$",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys taken out of every URI in it."""
    return _SECRET_PARAMETER.sub("", _USER_INFO.sub(r"\1", text))


def is_unescaped(uri: str) -> bool:
    """Returns True if the secret in a URI has a ``/`` in it, so that nothing can tell its end."""
    return _UNESCAPED.match(uri) is not None
