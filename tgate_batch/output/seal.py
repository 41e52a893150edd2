"""Seals: a digest of its content in each file of the output, which detects a changed byte.

It is in a Parquet file's footer (over all values and the rest of the footer), in the key ``seal``
of a JSON object, and in the last line of a text. Files of format 4 have none.
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
    """The digest of a table's values and its file's footer, independent of row groups."""

    def __init__(self, footer: Mapping[str, str]):
        """Begins a digest; ``footer``: the entries of the footer, of which a seal is ignored."""
        entries = {key: value for key, value in footer.items() if key != FOOTER}
        self._given = footer.get(FOOTER)
        self._footer = sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
        self._columns: dict[str, Any] = {}

    def add(self, table: pa.Table) -> None:
        """Adds the next rows."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            for chunk in column.chunks:
                for part, content in _parts(name, chunk):
                    self._columns.setdefault(part, sha256()).update(content)

    def value(self) -> str:
        """Returns the hexadecimal digest of the added rows."""
        parts = {part: digest.hexdigest() for part, digest in self._columns.items()}
        return sha256(json.dumps([self._footer, parts], sort_keys=True).encode()).hexdigest()

    def is_broken(self) -> bool:
        """Returns True if the footer has a seal that differs from the digest of the added rows."""
        return self._given is not None and self._given != self.value()


def _parts(name: str, column: pa.Array) -> Iterator[tuple[str, Any]]:
    """Yields a column's values as named bytes; the parts of successive chunks are concatenated."""
    kind = column.type
    yield f"{name} is there", column.is_valid().to_numpy(zero_copy_only=False).tobytes()
    if pa.types.is_struct(kind):
        for index, field in enumerate(kind):
            yield from _parts(f"{name}.{field.name}", pc.struct_field(column, [index]))
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
    """Returns a JSON object with its seal."""
    return {**content, KEY: _of_json(content)}


def is_broken(content: Any) -> bool:
    """Returns True if a JSON object has a seal that does not match its content."""
    return isinstance(content, dict) and KEY in content and content[KEY] != _of_json(content)


def _of_json(content: Mapping[str, Any]) -> str:
    values = {str(key): value for key, value in content.items() if key != KEY}
    plain = json.loads(json.dumps(values))  # the values that a reader gets
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def text_with_seal(text: str) -> str:
    """Returns Markdown or HTML with its seal in the last line, as an invisible comment."""
    text = text if text.endswith("\n") else text + "\n"
    return text + _LINE.format(sha256(text.encode()).hexdigest())


def is_sealed_text(content: bytes) -> bool:
    """Returns True if a text ends with a seal that matches it."""
    match = _SEALED.fullmatch(content)
    return match is not None and sha256(match[1]).hexdigest().encode() == match[2]
