"""No user name, password or key of a URI is ever shown or kept."""

import re

_USER_INFO = re.compile(r"(\w+://)[^/@\s]*@")
_SECRET_PARAMETER = re.compile(
    r"(?<=[?&])[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*&?|"
    r"&[^=&?\s]*(?:key|secret|token|password|credential|sig)[^=&\s]*=[^&\s]*$",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """The text with user names, passwords and keys taken out of every URI in it."""
    return _SECRET_PARAMETER.sub("", _USER_INFO.sub(r"\1", text))
