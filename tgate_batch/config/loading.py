"""Reads a config file: size-limited YAML of plain sections, with ``a.b=value`` overrides."""

import stat
from pathlib import Path
from typing import Any

import yaml

from tgate_batch.config.bundled import names
from tgate_batch.config.sections import Config
from tgate_batch.config.validation import parse
from tgate_batch.errors import UserError, one_line, shown

_LARGEST = 256 << 10  # bytes of a config
_DEEPEST = 20  # levels of sections in a config
_MOST_VALUES = 20_000  # in a config, with every alias written out


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML config and applies ``a.b=value`` overrides.

    Raises UserError, with the file and the field, if the config is invalid.
    """
    source = f"config {one_line(path)}"
    data = plain(path)
    for override in overrides:
        _override(data, override)
    return parse_plain(data, source)


def parse_plain(data: dict, source: str) -> Config:
    """Like ``parse``, but also refuses odd numbers, deep nesting and NUL characters in a file."""
    if fault := _not_plain(data):
        raise UserError(f"{source}: {fault}")
    return parse(data, source)


def plain(path: str | Path) -> dict:
    """Returns the unvalidated keys of a config file; raises UserError if it has none."""
    source = f"config {one_line(path)}"
    try:
        data = _plain(_content(path, source))
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {_at_line(error)}") from None
    except _Refused as error:
        raise UserError(f"{source}: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{source} has no keys. Fix: run tgate-batch init for an example")
    return data


def _content(path: str | Path, source: str) -> str:
    """Returns the text of a config file; raises UserError unless it is a small regular file."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UserError(f"{source} is {kind}. Fix: give a YAML file")
        if status.st_size > _LARGEST:
            raise UserError(
                f"{source} has {status.st_size:,} bytes, but a config has at most {_LARGEST:,}. "
                "Fix: check the path"
            )
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{source} does not exist. Fix: give a YAML file or a bundled config: "
            f"{', '.join(names())}"
        ) from None
    except OSError as error:
        raise UserError(f"{source} cannot be read: {one_line(error.strerror or error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not YAML: not UTF-8 ({one_line(error)})") from None
    except UserError:
        raise
    except ValueError as error:  # NUL in the name
        raise UserError(f"{source} cannot be read: {one_line(error)}") from None


class _Refused(ValueError):
    """Valid YAML that a config must not contain."""


class _Loader(yaml.SafeLoader):
    """Loads plain sections: no tags, few alias values, text keys without duplicates."""

    def __init__(self, text: str):
        super().__init__(text)
        self._values = 0  # so far, with every alias written out
        self._sizes: dict[str, int] = {}  # anchor -> its values

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise _Refused(
                f"line {line}: the tag {shown(event.tag)} is not supported. Fix: remove it"
            )
        before = self._values
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            self._values += 1
            self._sizes[event.anchor] = self._values - before
        elif event.anchor in self._sizes:
            self._values += self._sizes[event.anchor]
        else:
            raise _Refused(f"line {line}: the alias *{one_line(event.anchor, 60)} contains itself")
        if self._values > _MOST_VALUES:
            raise _Refused(f"line {line}: more than {_MOST_VALUES:,} values (aliases written out)")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            line = f"line {key.start_mark.line + 1}"
            kind = key.tag.rpartition(":")[2]
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"{line}: a list or section is used as a key. Fix: use a word")
            if kind not in ("str", "merge"):
                raise _Refused(
                    f"{line}: YAML reads the key {one_line(key.value, 60)} as {kind}, not as text. "
                    f'Fix: quote it: "{one_line(key.value, 60)}"'
                )
            if key.value in seen:
                raise _Refused(f"{line}: the key {shown(key.value)} is given twice. Fix: keep one")
            seen.add(key.value)
        return node


def _plain(text: str) -> Any:
    """Parses a YAML text; raises yaml.YAMLError, and _Refused for what no config needs."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        raise _Refused("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a number or date that Python cannot represent
        if isinstance(error, _Refused):
            raise
        raise _Refused(f"a number or date cannot be read: {one_line(error, 60)}") from None


def _at_line(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return one_line(error)
    return f"line {mark.line + 1}: {one_line(problem)}"


def _not_plain(value: Any, where: str = "", depth: int = 0) -> str | None:
    """Returns the first value that no key accepts, and its location; None if there is none."""
    if depth > _DEEPEST:
        return f"{one_line(where, 60)}: it is nested too deeply"
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            inner = f"{where}.{key}" if where else str(key)
            if fault := _not_text(str(key), where) or _not_plain(item, inner, depth + 1):
                return fault
        return None
    if isinstance(value, str):
        return _not_text(value, where)
    if isinstance(value, bool | None):
        return None
    if isinstance(value, int | float):
        usable = abs(value) < 2**63  # False for NaN
        return None if usable else f"{one_line(where)}: the number {shown(value)} is out of range"
    return f"{one_line(where)}: YAML reads this value as {type(value).__name__}. Fix: quote it"


def _not_text(value: str, where: str) -> str | None:
    if "\0" in value:
        return f"{one_line(where)}: the text has a NUL character. Fix: remove it"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{one_line(where)}: the text has half of a surrogate pair. Fix: remove it"
    return None


def _override(data: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    given = f"--set {shown(override)}"
    if not equals or not key.strip():
        raise UserError(f"{given} does not have the form a.b=value")
    try:
        value = _plain(text)
    except yaml.YAMLError:
        value = text
    except _Refused as error:
        raise UserError(f"{given}: {error}") from None
    *parents, last = key.strip().split(".")
    section: Any = data
    for depth, part in enumerate(parents):
        following = _item(section, part, given)
        if following is None:
            following = {}
            _put(section, part, following)
        if isinstance(following, str) and parents[:depth] == ["models"]:
            following = {"name": following}
            _put(section, part, following)
        section = following
    if not isinstance(section, dict | list):
        where = one_line(".".join(parents))
        raise UserError(f"{given}: {where} is a single value, not a section")
    if isinstance(section, list):
        _item(section, last, given)
    _put(section, last, value)


def _item(section: Any, part: str, given: str) -> Any:
    if isinstance(section, dict):
        return section.get(part)
    is_index = isinstance(section, list) and part.isdecimal() and len(part) < 6
    if is_index and int(part) < len(section):
        return section[int(part)]
    raise UserError(f"{given}: the config has no {shown(part)} there")


def _put(section: Any, part: str, value: Any) -> None:
    section[int(part) if isinstance(section, list) else part] = value
