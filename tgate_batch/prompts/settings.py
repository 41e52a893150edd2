"""Settings of a row: their columns, the check for ambiguous columns, and the values of cells."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from tgate_batch.config import Columns, Prompts
from tgate_batch.errors import UserError, one_line
from tgate_batch.prompts.source import PromptFile

_ALSO = {"steps": ("num_inference_steps",)}  # other names of a setting's column
_ELSEWHERE = {  # names of a setting in other tools: such a column is not read by default
    "negative_prompt": ("negative", "neg_prompt", "negativeprompt"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance"),
    "steps": ("step", "num_steps", "sampling_steps"),
}
_SIZE = ("height", "width")
_WORD = re.compile(
    r"(?!(?:null|true|false|yes|no|on|off|[yn])$)[A-Za-z]\w*", re.ASCII | re.IGNORECASE
)


def like(names: Iterable[str], name: str) -> str | None:
    """Returns the column of this name, or else one that differs only in case and blanks."""
    plain = name.strip().casefold()
    near = None
    for column in names:
        if column == name:
            return column
        if near is None and column.strip().casefold() == plain:
            near = column
    return near


def first_like(names: Collection[str], candidates: Iterable[str]) -> str | None:
    """Returns the first of the candidates that is a column."""
    return next(filter(None, (like(names, each) for each in candidates)), None)


def columns_of_settings(
    columns: Columns, names: Collection[str], taken: Collection[str | None]
) -> dict[str, str]:
    """Returns setting -> column: those that the config names, and those with a setting's name.

    Raises KeyError with a column that the config names and the file lacks.
    """
    overrides = {}
    for setting, standard in Columns():
        named = getattr(columns, setting)
        if named == standard:
            column = first_like(names, (standard, *_ALSO.get(setting, ())))
        else:
            column = like(names, named) if named else None
            if named and column is None:
                raise KeyError(named)
        if column is not None and column not in taken:
            overrides[setting] = column
    return overrides


def check_meant(
    spec: Prompts,
    given: Collection[str],
    source: PromptFile,
    names: Collection[str],
    overrides: dict,
) -> None:
    """Raises UserError, with the keys to write, if columns may describe something else.

    ``given``: the settings that the config sets. A column in ``prompts.columns`` is not in doubt;
    others are if the config has the setting too, if only some of a row's settings would be used,
    or if a size is the only setting.
    """
    named = spec.columns.model_fields_set
    open_ones = {key: overrides[key] for key in overrides if key not in named and key != "strength"}
    if not open_ones:
        return
    others = {
        setting: column
        for setting, candidates in _ELSEWHERE.items()
        if setting not in overrides
        and setting not in named
        and (column := first_like(names, candidates)) is not None
    }
    doubts = []
    if both := [f"sampling.{key}" for key in open_ones if key in given]:
        doubts.append(f"the config gives {_listed(both)} too")
    if others:
        doubts.append(f"{_listed(others.values())} would not be used")
    if overrides.keys() == open_ones.keys() <= {*_SIZE}:
        doubts.append("a size alone often describes a photograph")
    if doubts:
        meant = {key: _scalar(one_line(name, 60)) for key, name in (open_ones | others).items()}
        raise UserError(
            f"prompts file {source}: it is not clear if rows are rendered with their own "
            f"{_listed(open_ones.values())}: {'; '.join(doubts)}. Fix: write prompts.columns: "
            f"{_section(meant)} if they are, else prompts.columns: "
            f"{_section(dict.fromkeys(open_ones, 'null'))}"
        )


def _listed(names: Iterable[str]) -> str:
    *first, last = (one_line(name, 60) for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def _section(columns: Mapping[str, str]) -> str:
    """Returns a section as YAML in one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in columns.items()) + "}"


def _scalar(text: str) -> str:
    """Returns text as YAML: in quotes, unless it is a plain word."""
    return text if _WORD.fullmatch(text) else "'" + text.replace("'", "''") + "'"


def is_nan(value: Any) -> bool:
    """Returns True for NaN, which pandas writes for an empty cell among numbers."""
    return isinstance(value, float) and math.isnan(value)


def is_empty(value: Any) -> bool:
    """Returns True for an empty cell, including the text ``nan`` that pandas writes for it."""
    if isinstance(value, str | bytes):
        text = value.strip()
        return not text or text in ("nan", "NaN")
    return value is None or is_nan(value)


def _whole(low: int, high: int, multiple: int = 1) -> Callable[[Any], int | None]:
    """Returns a reader of integers in a range; the reader returns None for other values."""

    def read(value: Any) -> int | None:
        number = _number(value)
        if number is None or not low <= number <= high or number % multiple:
            return None
        return int(number)

    return read


def _number(value: Any) -> int | float | None:
    """Returns the number in a cell, which may be text (``7``, or pandas' ``7.0``); else None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, int):
        return value
    return number if math.isfinite(number) else None


def _scale(value: Any) -> float | None:
    number = _number(value)
    return None if number is None or number < 0 else float(number)


def _strength(value: Any) -> float | None:
    number = _number(value)
    return float(number) if number is not None and 0 < number <= 1 else None


_PIXELS = ("a multiple of 8, in pixels", _whole(8, 1 << 16, multiple=8))
NUMBERS: dict[str, tuple[str, Callable[[Any], int | float | None]]] = {
    "seed": ("an integer from 0 to 2**63 - 1", _whole(0, (1 << 63) - 1)),
    "guidance_scale": ("a number of at least 0", _scale),
    "height": _PIXELS,
    "width": _PIXELS,
    "steps": ("an integer from 1 to 1000", _whole(1, 1000)),
    "strength": ("a number above 0 and at most 1", _strength),
}
