"""Generates docs/config.md, the JSON Schema and the commented example config.

All three come from the descriptions in ``sections.py``.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tgate_batch.config.sections import Arm, Config, Lora, Model, Threshold, Thresholds

_INNER: dict[str, type[BaseModel]] = {
    "models": Model,
    "loras": Lora,
    "arms": Arm,
    "thresholds": Threshold,
}
_PREFIXES = {
    "models": "models[].",
    "loras": "models[].loras[].",
    "arms": "arms.NAME.",
    "thresholds": "thresholds.FIGURE.",
}


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a config, for YAML language servers."""
    schema = Config.model_json_schema()
    models = schema["properties"]["models"]
    models["items"] = {"anyOf": [models["items"], {"type": "string"}]}
    arms = schema["properties"]["arms"]
    arms["additionalProperties"] = False
    for pattern, arm in arms["patternProperties"].items():
        arms["patternProperties"][pattern] = {"anyOf": [arm, {"type": "null"}]}
    extractor = schema["$defs"]["Score"]["properties"]["extractor"]
    schema["$defs"]["Score"]["properties"]["extractor"] = {
        "anyOf": [{"type": "string"}, extractor],
        "description": extractor["description"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def markdown() -> str:
    """Returns one table of all keys: type, default and description."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, field in _keys(Config):
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field)} | {_default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def commented(given: Mapping[str, Any]) -> str:
    """Returns a config as YAML: the given keys, and every other key commented, with its default."""
    return "\n".join(_lines(Config, given, 0)) + "\n"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every key with its dotted name."""
    for name, field in section.model_fields.items():
        inner = _inner(name, field)
        if inner is None or name in _INNER:
            yield prefix + name, field
        if name == "thresholds":
            yield from _keys(Thresholds, "thresholds.")
        if inner is not None:
            yield from _keys(inner, _PREFIXES.get(name, f"{prefix}{name}."))


def _inner(name: str, field: FieldInfo) -> type[BaseModel] | None:
    if name in _INNER:
        return _INNER[name]
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type(field: FieldInfo) -> str:
    kinds = _kinds(field.annotation)
    return " or ".join(dict.fromkeys(kinds)).replace("|", "\\|")


def _kinds(kind: Any) -> Iterator[str]:
    arguments = get_args(kind)
    if kind is type(None):
        return
    if isinstance(kind, type) and not arguments:
        yield {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no"}.get(
            kind.__name__, "section"
        )
    elif getattr(kind, "__origin__", None) in (tuple,):
        yield "list"
    elif getattr(kind, "__origin__", None) in (dict,):
        yield "section"
    elif hasattr(kind, "__metadata__"):
        yield from _kinds(arguments[0])
    elif arguments and all(isinstance(value, str) for value in arguments):
        yield from (f"`{value}`" for value in arguments)
    else:
        for one in arguments:
            yield from _kinds(one)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return ""
    if isinstance(field.default, BaseModel) or field.default in ({}, ()):
        return ""
    return f"`{_scalar(field.default)}`"


def _scalar(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n...\n").strip()


def _lines(section: type[BaseModel], given: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yields the lines of each key, after its description."""
    indent = "  " * depth
    for name, field in section.model_fields.items():
        inner = _inner(name, field)
        about = " ".join((field.description or (inner and inner.__doc__) or "").split())
        about = about.replace("``", "`")
        mark = f"{indent}# "
        yield from textwrap.wrap(about, 98, initial_indent=mark, subsequent_indent=mark)
        if inner is not None and name not in _INNER:
            yield f"{indent}{name}:" + ("" if given.get(name) else " {}")
            yield from _lines(inner, given.get(name, {}), depth + 1)
        elif name in given:
            yield textwrap.indent(_value(name, given[name]), indent)
        else:
            yield f"{mark}{name}: {_scalar(field.default)}"
        if depth == 0:
            yield ""


def _value(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name}: {_scalar(value)}"
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=1000)
    return f"{name}:\n" + textwrap.indent(text.rstrip(), "  ")


def main() -> None:
    """Writes docs/config.md and the schema into a checkout."""
    root = Path(__file__).parents[2]
    for name, content in files().items():
        (root / name).write_text(content, encoding="utf-8")


def files() -> dict[str, str]:
    """Returns the contents of the generated files of a checkout, by name."""
    return {
        "docs/config.md": _HEAD + markdown(),
        "configs/config.schema.json": json.dumps(json_schema(), indent=1) + "\n",
    }


_HEAD = """# Every key of a config

A run is one YAML file. `tgate-batch init MODEL` writes one with every key and its description; the
files in `configs/` are shorter. `--set a.b=value` overrides one key, `--output` the output folder.
Editors with a YAML language server complete and check the keys, because the first line of each
bundled config names `configs/config.schema.json`.

"""

if __name__ == "__main__":
    main()
