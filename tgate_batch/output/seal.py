"""Seals: each file of the output carries a digest of its content, so that a changed byte is found.

A Parquet file has it in its footer, over every value and all that the footer says; a JSON object
has it under a key of its own; a text has it in its last line. Files of format 4 have none.
"""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FOOTER = "tgate_batch.seal"  # in a Parquet file's footer
KEY = "seal"  # in a JSON object
_LINE = "<!-- sha256 of the text above: {} -->\n"
_SEALED = re.compile(rb"(?s)(.*)" + _LINE.format("([0-9a-f]{64})").encode())


class TableSeal:
    """The digest of a table's values and its file's footer; row groups do not decide it."""

    def __init__(self, footer: Mapping[str, str]):
        """``footer``: all that the file says of itself; a seal in it does not count."""
        told = {key: value for key, value in footer.items() if key != FOOTER}
        self._given = footer.get(FOOTER)
        self._footer = sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self._columns: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Takes the next rows in."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            for chunk in column.chunks:
                for part, content in _parts(name, chunk):
                    self._columns.setdefault(part, sha256()).update(content)

    def value(self) -> str:
        """The digest of what was taken in, in hexadecimal digits."""
        parts = {part: digest.hexdigest() for part, digest in self._columns.items()}
        return sha256(json.dumps([self._footer, parts], sort_keys=True).encode()).hexdigest()

    def is_broken(self) -> bool:
        """Whether the footer has a seal, and another than that of the rows that were taken in."""
        return self._given is not None and self._given != self.value()


def _parts(name: str, column: pa.Array) -> Iterator[tuple[str, Any]]:
    """A column's values as bytes, each part with a name; parts of chunks may be joined."""
    kind = column.type
    yield f"{name} is there", column.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_struct(kind):
        for place, field in enumerate(kind):
            yield from _parts(f"{name}.{field.name}", pc.struct_field(column, [place]))
    elif pa.types.is_fixed_size_list(kind):
        yield from _parts(f"{name}.element", column.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        values = column.cast(pa.binary()).fill_null(b"")
        yield f"{name} {kind} lengths", pc.binary_length(values).to_numpy().tobytes()
        yield from ((f"{name} values", value.as_buffer()) for value in values)
    else:
        zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
        yield f"{name} {kind}s", column.fill_null(zero).to_numpy(zero_copy_only=False).tobytes()


def with_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal."""
    return {**content, KEY: _of_json(content)}


def is_broken(content: Any) -> bool:
    """Whether a JSON object has a seal that is not its own."""
    return isinstance(content, dict) and KEY in content and content[KEY] != _of_json(content)


def _of_json(content: Mapping[str, Any]) -> str:
    told = {str(key): value for key, value in content.items() if key != KEY}
    plain = json.loads(json.dumps(told))  # as a reader has it
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def text_with_seal(text: str) -> str:
    """A text of Markdown or HTML with its seal as the last line, which readers do not show."""
    text = text if text.endswith("\n") else text + "\n"
    return text + _LINE.format(sha256(text.encode()).hexdigest())


def is_sealed_text(content: bytes) -> bool:
    """Whether a text ends with a seal, and it is its own."""
    found = _SEALED.fullmatch(content)
    return found is not None and sha256(found[1]).hexdigest().encode() == found[2]
