"""Writes and reads Parquet files of rows; a file's footer has its identity and its seal.

One file per (model, arm, shard), in plain folders and with ``model`` and ``arm`` as columns, so
that pandas, Polars, DuckDB, Arrow, `datasets` and Ray Data open the folder without our code.
Every reader verifies the pages' checksums.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.output import seal
from tgate_batch.output.layout import IDENTITY_KEY
from tgate_batch.output.seal import TableSeal
from tgate_batch.records import SCHEMA, ImageRecord, row_digest
from tgate_batch.storage import Folder, StorageError, is_outage

ROWS_A_GROUP = 32  # reading one image reads its group, so groups are small: a few MiB each
_INCOMPRESSIBLE = {"image.bytes", "video", "features.list.element"}

# What a reader raises for a damaged file. An outage of the storage is a StorageError, and neither.
DAMAGE = (pa.ArrowException, OSError)


class OtherFile(OSError):
    """An intact file of the name has another identity than the expected one."""


def write_table(
    folder: Folder,
    name: str,
    table: pa.Table,
    identity: str,
    metadata: Mapping[str, str] | None = None,
    rows_a_group: int = ROWS_A_GROUP,
) -> None:
    """Writes rows under an identity; the file appears only when it is complete."""
    own = dict(metadata or {}) | {IDENTITY_KEY.decode(): identity}
    footer = footer_of(table.schema.metadata or {}) | own
    sealed = TableSeal(footer)
    sealed.add(table)
    table = table.replace_schema_metadata(footer | {seal.FOOTER: sealed.value()})
    compression = {leaf: "none" if leaf in _INCOMPRESSIBLE else "zstd" for leaf in _leaves(table)}
    texts = [field.name for field in table.schema if field.type == pa.string()]
    with folder.create(name) as stream:
        pq.write_table(
            table,
            stream,
            row_group_size=rows_a_group,
            compression=compression,
            use_dictionary=texts,
            write_statistics=[leaf for leaf in compression if leaf not in _INCOMPRESSIBLE],
            write_page_checksum=True,
        )


def _leaves(table: pa.Table) -> Iterator[str]:
    """Yields the columns as Parquet names them, nested ones by their path."""
    for field in table.schema:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{child.name}" for child in field.type)
        elif pa.types.is_fixed_size_list(field.type):
            yield f"{field.name}.list.element"
        else:
            yield field.name


def write_records(
    folder: Folder,
    name: str,
    model: str,
    arm: str,
    records: Iterable[ImageRecord],
    identity: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes image rows; ``metadata`` (plan, MACs per image, ...) goes into the file's footer."""
    rows = []
    for one in records:
        key = (model, arm, one.prompt_id, one.image_number)
        digest = row_digest(*key, one.image, one.video)
        rows.append({"model": model, "arm": arm, **one.row(), "digest": digest})
    write_table(folder, name, pa.Table.from_pylist(rows, schema=SCHEMA), identity, metadata)


@contextmanager
def open_table(folder: Folder, name: str, identity: str | None = None) -> Iterator[pq.ParquetFile]:
    """Opens a file for reading; its pages are verified as they are read.

    Raises one of ``DAMAGE`` if the file is missing or damaged, also while it is read, and OtherFile
    if its identity is not the given one.
    """
    with folder.open(name) as stream:
        # With pre_buffer, adjacent ranges of a store's file are one request.
        file = pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=not folder.local)
        stored = (file.metadata.metadata or {}).get(IDENTITY_KEY)
        if identity is not None and stored != identity.encode():
            raise OtherFile(f"{folder.path(name)} was made of other settings or prompts")
        try:
            yield file
        except OSError as error:
            if is_outage(error):  # a mounted folder is no longer available
                raise StorageError(f"{folder.path(name)} cannot be read: {error}") from error
            raise


def footer(file: pq.ParquetFile) -> dict[str, str]:
    """Returns the entries of an open file's footer."""
    return footer_of(file.metadata.metadata or {})


def footer_of(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """Returns a footer's entries as text; invalid UTF-8 is replaced."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in metadata.items()
        if key != b"ARROW:schema"
    }


def read_table(
    folder: Folder, name: str, columns: list[str] | None = None, identity: str | None = None
) -> pa.Table:
    """Returns a file's rows; its footer is the schema's metadata. Raises as ``open_table``."""
    with open_table(folder, name, identity) as file:
        return file.read(columns=columns)


def read_batches(
    folder: Folder,
    name: str,
    columns: list[str] | None = None,
    rows: int = ROWS_A_GROUP,
    identity: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields a file's rows in order, ``rows`` at a time; raises as ``open_table``."""
    with open_table(folder, name, identity) as file:
        yield from file.iter_batches(batch_size=rows, columns=columns)
