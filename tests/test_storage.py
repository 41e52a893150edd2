import os
import pickle

import pyarrow as pa
import pytest

from tgate_batch.errors import UserError
from tgate_batch.output import parquet
from tgate_batch.records import ImageRecord
from tgate_batch.storage import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def rows(count):
    return [ImageRecord(str(i), 0, "a cat", i, "ok", image=bytes([i])) for i in range(count)]


def test_file_appears_under_its_name_only_when_whole(folder):
    with folder.create("a/b.txt") as file:
        file.write(b"half")
        assert folder.names("") == []
    assert folder.names("") == ["a/b.txt"]
    assert folder.read("a/b.txt") == b"half"


def test_failed_write_leaves_the_old_file_and_nothing_else(folder, tmp_path):
    folder.write("a.txt", "old")

    def failing():
        with folder.create("a.txt") as file:
            file.write(b"new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        failing()
    assert folder.read("a.txt") == b"old"
    assert os.listdir(tmp_path / "out") == ["a.txt"]


def test_what_a_killed_writer_left_is_hidden_and_cleared(folder, tmp_path):
    folder.write("images/a.parquet", "x")
    left = tmp_path / "out" / "images" / ".tmp-b.parquet-0123"
    left.write_bytes(b"half")
    assert folder.names("images") == ["images/a.parquet"]
    assert folder.clear_temporary() == 1
    assert not left.exists()


def test_folder_travels_to_workers(folder):
    folder.write("a.txt", "x")
    assert pickle.loads(pickle.dumps(folder)).read("a.txt") == b"x"  # noqa: S301


def test_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        Folder(str(tmp_path / "file" / "out")).check_writable()


def test_unknown_kind_of_storage_is_refused():
    with pytest.raises(UserError, match="cannot be reached"):
        Folder("nowhere://bucket/out")


def test_only_a_whole_file_of_the_same_shard_is_done(folder, tmp_path):
    name = parquet.images_name("m", "a", 0)
    assert not parquet.is_done(folder, name, "digest", 3)
    parquet.write_records(folder, name, rows(3), "digest")
    assert parquet.is_done(folder, name, "digest", 3)
    assert not parquet.is_done(folder, name, "digest", 4)
    assert not parquet.is_done(folder, name, "other", 3)
    file = tmp_path / "out" / name
    file.write_bytes(file.read_bytes()[:-20])
    assert not parquet.is_done(folder, name, "digest", 3)


def test_picture_bytes_are_stored_uncompressed_in_small_row_groups(folder):
    name = parquet.images_name("m", "a", 0)
    parquet.write_records(folder, name, rows(100), "digest", {"macs_per_image": "5"})
    with folder.open(name) as file:
        footer = pa.parquet.read_metadata(file)
    assert footer.num_row_groups == 4
    columns = [footer.row_group(0).column(i) for i in range(footer.num_columns)]
    kept = {column.path_in_schema: column.compression for column in columns}
    assert kept["image.bytes"] == "UNCOMPRESSED"
    assert kept["prompt"] == "ZSTD"
    assert footer.metadata[b"macs_per_image"] == b"5"
    assert b"huggingface" in footer.metadata
