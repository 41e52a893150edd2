import os
import pickle
import resource

import pytest

from tgate_batch.errors import StorageError, UserError
from tgate_batch.storage import Folder, without_credentials


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


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


def test_full_disk_is_trouble_of_the_storage_and_leaves_the_old_file(folder, tmp_path):
    folder.write("a.txt", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # bytes a file may have
    try:
        with pytest.raises(StorageError, match=r"a\.txt in .* cannot be written: File too large"):
            folder.write("a.txt", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.read("a.txt") == b"old"
    assert os.listdir(tmp_path / "out") == ["a.txt"]


def test_checking_leaves_nothing_behind(folder, tmp_path):
    folder.check_writable()
    assert os.listdir(tmp_path) == []
    folder.write("a.txt", "x")
    folder.check_writable()
    assert os.listdir(tmp_path / "out") == ["a.txt"]


def test_missing_file_is_none(folder):
    assert folder.get("a.txt") is None
    folder.write("a.txt", "x")
    assert folder.get("a.txt") == b"x"


def test_many_files_are_read_in_the_order_asked_for(folder):
    names = [f"{number}.txt" for number in range(40)]
    for name in names:
        folder.write(name, name)
    assert folder.read_all(names[::-1]) == [name.encode() for name in names[::-1]]


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


def test_file_that_is_there_is_not_written_first(folder):
    assert folder.write_first("a.txt", "one")
    assert not folder.write_first("a.txt", "two")
    assert folder.read("a.txt") == b"one"
    assert folder.names("") == ["a.txt"]


def test_lines_are_added_at_the_end(folder):
    folder.append("a.txt", "one")
    folder.append("a.txt", "two")
    assert folder.read("a.txt") == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:SECRET@bucket/out", "s3://bucket/out"),
        ("s3://bucket/out?region=eu&secret_key=S", "s3://bucket/out?region=eu"),
        ("s3://bucket/out?access_key=A&secret_key=S&region=eu", "s3://bucket/out?region=eu"),
        ("say --output=gs://user:pw@b/o twice", "say --output=gs://b/o twice"),
        ("out/demo", "out/demo"),
    ],
)
def test_credentials_are_taken_out_of_a_uri(uri, shown):
    assert without_credentials(uri) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://AKIA:ab/cd@bucket", "s3://bucket"),
        ("s3://AKIA:a/b@c/d@bucket/x.csv?region=a", "s3://bucket/x.csv?region=a"),
        ("at 's3://AKIA:a/b@bucket/x' and '/home/me@x'", "at 's3://bucket/x' and '/home/me@x'"),
        ("s3://bucket/me@home.png", "s3://bucket/me@home.png"),
    ],
)
def test_a_slash_in_a_secret_shows_nothing_of_it(text, shown):
    assert without_credentials(text) == shown


@pytest.mark.parametrize("make", [Folder, Folder.of_file])
@pytest.mark.parametrize("uri", ["s3://AKIA:ab/cd@bucket", "s3://AKIA:ab/cd@bucket/set.csv"])
def test_a_uri_whose_secret_has_a_slash_is_refused_without_it(make, uri):
    with pytest.raises(UserError, match=r"Fix: write %2F for the /") as caught:
        make(uri)
    assert "ab" not in str(caught.value)
    assert "cd" not in str(caught.value).replace("credentials", "")
