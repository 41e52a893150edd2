"""Rows to Parquet files and back. A file's footer says what it was made of, and seals it.

One file per (model, arm, shard), in plain folders and with ``model`` and ``arm`` as columns, so
that pandas, Polars, DuckDB, Arrow, `datasets` and Ray Data open the folder with no code of ours.
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

ROWS_A_GROUP = 32  # a random picture costs one group read: small groups, few MiB each
_INCOMPRESSIBLE = {"image.bytes", "video", "features.list.element"}

# What a reader raises for a file that is not as written. A storage in trouble is a StorageError,
# which is neither.
DAMAGE = (pa.ArrowException, OSError)


class OtherFile(OSError):
    """A file has the name, is whole, and was made of something else."""


def write_table(
    folder: Folder,
    name: str,
    table: pa.Table,
    identity: str,
    metadata: Mapping[str, str] | None = None,
    rows_a_group: int = ROWS_A_GROUP,
) -> None:
    """Writes rows made of ``identity``; the file appears whole."""
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
    """The columns as Parquet names them, nested ones by their path."""
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
    rows = [
        {
            "model": model,
            "arm": arm,
            **record.row(),
            "digest": row_digest(
                model, arm, record.prompt_id, record.image_number, record.image, record.video
            ),
        }
        for record in records
    ]
    write_table(folder, name, pa.Table.from_pylist(rows, schema=SCHEMA), identity, metadata)


@contextmanager
def open_table(folder: Folder, name: str, identity: str | None = None) -> Iterator[pq.ParquetFile]:
    """A file open for reading, its footer read once, its pages verified as they are read.

    Raises one of ``DAMAGE`` where the file is missing or damaged, also while it is read, and
    OtherFile where its footer names another identity than the given one.
    """
    with folder.open(name) as stream:
        # A store is asked for what lies close together at once.
        file = pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=not folder.local)
        found = (file.metadata.metadata or {}).get(IDENTITY_KEY)
        if identity is not None and found != identity.encode():
            raise OtherFile(f"{folder.path(name)} was made of other settings or prompts")
        try:
            yield file
        except OSError as error:
            if is_outage(error):  # a mounted folder that went away
                raise StorageError(f"{folder.path(name)} cannot be read: {error}") from error
            raise


def footer(file: pq.ParquetFile) -> dict[str, str]:
    """What an open file says of itself."""
    return footer_of(file.metadata.metadata or {})


def footer_of(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """A footer's entries as text; what is no UTF-8 in it is no reason to fail."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in metadata.items()
        if key != b"ARROW:schema"
    }


def read_table(
    folder: Folder, name: str, columns: list[str] | None = None, identity: str | None = None
) -> pa.Table:
    """One file's rows, with its footer as the schema's metadata. Raises as ``open_table`` does."""
    with open_table(folder, name, identity) as file:
        return file.read(columns=columns)


def read_batches(
    folder: Folder,
    name: str,
    columns: list[str] | None = None,
    rows: int = ROWS_A_GROUP,
    identity: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """One file's rows, a few at a time, in order. Raises as ``open_table`` does."""
    with open_table(folder, name, identity) as file:
        yield from file.iter_batches(batch_size=rows, columns=columns)
