import errno
import os
import pickle
import resource

import pytest

from tgate_batch.errors import StorageError, UserError
from tgate_batch.output.lock import output_lock
from tgate_batch.storage import Folder, is_lasting, without_credentials

HEX = "0123456789abcdef" * 2


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
    left = tmp_path / "out" / "images" / f".tmp-b.parquet-{HEX}"
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


@pytest.mark.parametrize(
    "name",
    [
        f"a.tmp-b-{HEX}",
        ".tmp-",
        ".tmp-notes.txt",
        ".tmp-b.parquet-0123",
        f".tmp-b.parquet-{HEX.upper()}",
        f".tmp-{HEX}",
        f".tmp-b-{HEX}/c.txt",
    ],
)
def test_file_is_temporary_only_under_the_very_name_of_an_unfinished_write(folder, name):
    folder.write(name, "a person's")
    assert folder.names("") == [name]
    assert folder.temporary() == []
    assert folder.clear_temporary() == 0
    assert folder.read(name) == b"a person's"


def test_output_below_a_folder_named_like_a_temporary_file_works(tmp_path):
    folder = Folder(str(tmp_path / f".tmp-run-{HEX}" / "my.tmp-out"))
    folder.write("a/b.txt", "x")
    assert folder.names("") == ["a/b.txt"]
    folder.check_writable()
    assert folder.clear_temporary() == 0
    assert folder.names("a") == ["a/b.txt"]


@pytest.fixture
def victim(folder, tmp_path):
    """A folder elsewhere, to which ``images`` and ``b/linked`` of the output are links."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("thesis")
    (victim / f".tmp-a-{HEX}").write_text("theirs")
    folder.write("b/a.txt", "x")
    for link in ("images", "b/linked"):
        os.symlink(victim, folder.path(link))
    os.symlink(victim / "thesis.txt", folder.path("history.jsonl"))
    yield victim
    assert sorted(os.listdir(victim)) == [f".tmp-a-{HEX}", "thesis.txt"]
    assert (victim / "thesis.txt").read_text() == "thesis"


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: folder.write("images/thesis.txt", "ours"),
        lambda folder: folder.write("b/linked/new/file.txt", "ours"),
        lambda folder: folder.append("images/thesis.txt", "ours"),
        lambda folder: folder.append("history.jsonl", "ours"),
        lambda folder: folder.delete("images/thesis.txt"),
        lambda folder: folder.delete_all("images"),
        lambda folder: folder.delete_all("b"),
        lambda folder: folder.remove("images"),
        lambda folder: folder.remove("b/linked"),
    ],
)
def test_nothing_is_written_or_deleted_through_a_symbolic_link(folder, victim, act):
    with pytest.raises(UserError, match=r"is a symbolic link, and nothing is written .* Fix: put"):
        act(folder)


def test_link_itself_is_replaced_removed_or_passed_over(folder, victim):
    folder.write("history.jsonl", "ours")
    assert not os.path.islink(folder.path("history.jsonl"))
    assert folder.clear_temporary() == 0
    folder.remove("b")
    folder.delete("images")
    assert folder.names("") == ["history.jsonl"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_full_or_read_only_disk_is_named_and_no_file_on_it(folder, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(StorageError) as caught:
        folder.write("workers/a.json", "x")
    assert str(caught.value).startswith(
        f"{folder} cannot be written: {os.strerror(number)}. Fix: make"
    )
    assert is_lasting(caught.value)
    assert is_lasting(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301


def test_storage_without_hard_links_is_one_to_work_on(folder, monkeypatch):
    """As SMB, exFAT and FUSE mounts often are."""

    def refused(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with output_lock(folder):
        folder.write("a.txt", "x")
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


LEAVING = ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "a\0b", "..\\x", "C:x", "C:/x"]


@pytest.mark.parametrize("name", LEAVING)
def test_a_name_that_leaves_the_folder_is_refused_by_every_method(folder, tmp_path, name):
    (tmp_path / "x").write_text("kept")
    for call in (
        folder.read,
        folder.exists,
        folder.names,
        folder.delete,
        folder.delete_all,
        folder.remove,
        folder.within,
        lambda name: folder.write(name, "y"),
        lambda name: folder.append(name, "y"),
        lambda name: folder.stamps_of([name]),
    ):
        with pytest.raises(UserError, match="leads out of the folder") as told:
            call(name)
        assert str(told.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "kept"


@pytest.mark.parametrize("name", ["a..b", "..a/b..", ".hidden", "a b/c$(d)", "ä/x.parquet"])
def test_a_name_that_only_looks_odd_is_a_file_inside(folder, name):
    folder.write(name, "x")
    assert folder.read(name) == b"x"
    assert folder.names("") == [name]


def test_nothing_is_written_or_deleted_over_a_link_that_leads_out(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").mkdir()
    victim = tmp_path / "victim" / "file"
    victim.write_text("kept")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "out" / "line").symlink_to(victim)
    for call in (
        lambda: folder.delete("link/file"),
        lambda: folder.delete_all("link"),
        lambda: folder.remove("link"),
        lambda: folder.write("link/file", "y"),
        lambda: folder.write("link/other", "y"),
        lambda: folder.append("line", "y"),
    ):
        with pytest.raises(UserError, match="is a symbolic link"):
            call()
    folder.write("line", "y")  # takes the link's place
    assert folder.read("line") == b"y"
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["file"]
    assert victim.read_text() == "kept"


def test_a_link_inside_the_folder_is_read_through_but_not_written_through(folder, tmp_path):
    folder.write("a/b", "x")
    (tmp_path / "out" / "c").symlink_to("a")
    assert folder.read("c/b") == b"x"
    with pytest.raises(UserError, match="is a symbolic link"):
        folder.write("c/d", "y")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder, tmp_path):
    folder.write("a", "x")
    os.mkfifo(tmp_path / "out" / "pipe")
    for call in (lambda: folder.read("pipe"), lambda: folder.append("pipe", "x")):
        with pytest.raises(UserError, match="is not a regular file"):
            call()


def test_paths_of_a_list_that_a_person_wrote_may_lead_elsewhere(folder, tmp_path):
    (tmp_path / "x").write_text("x")
    (tmp_path / "out").mkdir()
    there = pickle.loads(pickle.dumps(folder.unconfined))  # noqa: S301
    assert there.read("../x") == b"x"
    with pytest.raises(UserError, match="leads out of the folder"):
        folder.unconfined.write("../x", "y")


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
    with pytest.raises(UserError, match=r"Fix: write %2F instead of /") as caught:
        make(uri)
    assert "ab" not in str(caught.value)
    assert "cd" not in str(caught.value).replace("credentials", "")
