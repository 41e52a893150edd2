"""Records to Parquet files and back; which shards are done.

One file per (model, arm, shard) under Hive-style folders, so that DuckDB, pandas, `datasets` and
Ray Data open the folder with no code of ours. A valid file under its final name is the only
progress state of a run.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tgate_batch.records import SCHEMA, ImageRecord, shard_name
from tgate_batch.storage import Folder

_ROWS_A_GROUP = 32  # a random picture costs one group read: small groups, few MiB each
_SHARD_KEY = b"tgate_batch.shard"
_INCOMPRESSIBLE = {"image.bytes", "video", "features.list.element"}


def images_name(model: str, arm: str, shard: int) -> str:
    """The name of a shard's rows inside the output folder."""
    return f"images/model={model}/arm={arm}/{shard_name(shard)}.parquet"


def write_table(folder: Folder, name: str, table: pa.Table, digest: str) -> None:
    """Writes rows that belong to the shard of this digest; the file appears whole."""
    metadata = {**(table.schema.metadata or {}), _SHARD_KEY: digest.encode()}
    table = table.replace_schema_metadata(metadata)
    compression = {leaf: "none" if leaf in _INCOMPRESSIBLE else "zstd" for leaf in _leaves(table)}
    texts = [field.name for field in table.schema if field.type == pa.string()]
    with folder.create(name) as stream:
        pq.write_table(
            table,
            stream,
            row_group_size=_ROWS_A_GROUP,
            compression=compression,
            use_dictionary=texts,
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
    records: Iterable[ImageRecord],
    digest: str,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes image rows; ``metadata`` (plan, MACs per image, ...) goes into the file's schema."""
    table = pa.Table.from_pylist([record.row() for record in records], schema=SCHEMA)
    table = table.replace_schema_metadata({**SCHEMA.metadata, **(metadata or {})})
    write_table(folder, name, table, digest)


def is_done(folder: Folder, name: str, digest: str, rows: int | None = None) -> bool:
    """Whether a whole file of exactly this shard (and row count) stands under the name."""
    if not folder.exists(name):
        return False
    try:
        with folder.open(name) as file:
            footer = pq.read_metadata(file)
    except (pa.ArrowException, OSError):
        return False
    if rows is not None and footer.num_rows != rows:
        return False
    return (footer.metadata or {}).get(_SHARD_KEY) == digest.encode()


def read_metadata(folder: Folder, name: str) -> dict[str, str]:
    """What a file says of itself; raises OSError or ArrowException where it is damaged."""
    with folder.open(name) as file:
        found = pq.read_metadata(file).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items() if key != b"ARROW:schema"}


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One shard's rows; raises OSError or ArrowException where the file is damaged."""
    with folder.open(name) as file:
        return pq.read_table(file, columns=columns)


def read_batches(
    folder: Folder, name: str, columns: list[str] | None = None, rows: int = _ROWS_A_GROUP
) -> Iterator[pa.RecordBatch]:
    """One shard's rows, a few at a time, in order."""
    with folder.open(name) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=rows, columns=columns)
