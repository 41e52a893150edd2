"""Validates plain data as a config; describes the first fault in one line."""

import difflib

from pydantic import BaseModel, ValidationError

from tgate_batch.config.sections import Arm, Config, Lora, Model, Threshold
from tgate_batch.errors import UserError, one_line, shown


def parse(data: dict, source: str = "config") -> Config:
    """Validates plain data; raises UserError with the first fault, in one line."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = one_line(".".join(str(part) for part in fault["loc"] if part != "[key]"))
    if fault["type"] == "extra_forbidden":
        *parents, unknown = fault["loc"]
        known = _known_keys(parents)
        near = difflib.get_close_matches(str(unknown)[:100], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if fault["type"] == "missing":
        return f"{where!r} is missing"
    if "[key]" in fault["loc"] or (
        fault["type"] == "string_pattern_mismatch" and fault["loc"][-1] == "name"
    ):
        where = where if "[key]" in fault["loc"] else f"{where}: {one_line(fault['input'])}"
        return (
            f"{where!r} cannot name a folder: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    message = one_line(fault["msg"].removeprefix("Value error, "))
    given = fault.get("input")
    shown_value = "" if isinstance(given, dict | list | BaseModel) else f" (found {shown(given)})"
    return f"{where}: {message}{shown_value}" if where else message


def _known_keys(parents: list) -> list[str]:
    section: type[BaseModel] = Config
    sections: dict[str, type[BaseModel]] = {
        "models": Model,
        "loras": Lora,
        "arms": Arm,
        "thresholds": Threshold,
    }
    for part in parents:
        if part in sections:
            section = sections[part]
        elif part in section.model_fields and isinstance(
            annotation := section.model_fields[part].annotation, type
        ):
            section = annotation
    return sorted(getattr(section, "model_fields", {}))
