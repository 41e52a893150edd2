import pyarrow.parquet as pq
import pytest

from tgate_batch.output import layout, parquet
from tgate_batch.records import SCHEMA, ImageRecord
from tgate_batch.storage import Folder

NAME = layout.shard_file(layout.images("m", "a"), 0)


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def write(folder, count=3, **metadata):
    rows = [ImageRecord(str(i), 0, "a cat", i, "ok", image=bytes([i]) * 500) for i in range(count)]
    parquet.write_records(folder, NAME, "m", "a", rows, "identity", metadata)


def test_model_and_arm_are_columns(folder):
    write(folder)
    table = parquet.read_table(folder, NAME)
    assert table.schema.names == SCHEMA.names
    assert set(table["model"].to_pylist()) == {"m"}
    assert set(table["arm"].to_pylist()) == {"a"}


def test_file_of_another_identity_is_not_read(folder):
    write(folder)
    assert parquet.read_table(folder, NAME, identity="identity").num_rows == 3
    with pytest.raises(parquet.OtherFile, match="made of other settings"):
        parquet.read_table(folder, NAME, identity="other")


def test_byte_flipped_inside_a_page_is_found_by_every_reader(folder, tmp_path):
    write(folder)
    file = tmp_path / "out" / NAME
    content = bytearray(file.read_bytes())
    content[content.index(bytes([1]) * 500) + 100] ^= 1  # of the picture in the middle
    file.write_bytes(content)
    for read in (
        lambda: parquet.read_table(folder, NAME),
        lambda: list(parquet.read_batches(folder, NAME)),
    ):
        with pytest.raises(parquet.DAMAGE, match="CRC"):
            read()


def test_pages_of_images_hold_no_statistics(folder, tmp_path):
    write(folder)
    content = (tmp_path / "out" / NAME).read_bytes()
    assert content.count(bytes([1]) * 64) == len(bytes([1]) * 500) // 64  # one copy of each image
    with folder.open(NAME) as file:
        group = pq.read_metadata(file).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("image.bytes", "video"):
        assert columns[name].statistics is None
    assert columns["seed"].statistics is not None


def test_truncated_file_is_damage(folder, tmp_path):
    write(folder)
    file = tmp_path / "out" / NAME
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(parquet.DAMAGE):
        parquet.read_table(folder, NAME)


def test_picture_bytes_are_stored_uncompressed_in_small_row_groups(folder):
    write(folder, 100, macs_per_image="5")
    with folder.open(NAME) as file:
        footer = pq.read_metadata(file)
    assert footer.num_row_groups == 4
    columns = [footer.row_group(0).column(i) for i in range(footer.num_columns)]
    kept = {column.path_in_schema: column.compression for column in columns}
    assert kept["image.bytes"] == "UNCOMPRESSED"
    assert kept["prompt"] == "ZSTD"
    assert footer.metadata[b"macs_per_image"] == b"5"
    assert b"huggingface" in footer.metadata
