"""A run on an object store: moto's S3 server, in this process, asked over HTTP as any other."""

import errno
import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from object_store import BUCKET, Store
from racers import leave_a_dead_claim, owners

from tgate_batch import config, workflow
from tgate_batch.cli.job import run_as_job
from tgate_batch.config import Workers
from tgate_batch.errors import OutputLost, StorageError, UserError
from tgate_batch.execute.verify import verify
from tgate_batch.output import history, layout, parquet, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.output.lock import output_lock
from tgate_batch.score.reference import load_reference
from tgate_batch.storage import Folder, is_outage, remote, worker_hint

ROOT = Path(__file__).parents[1]
KEY, SECRET, SECRET_OF_ENVIRONMENT = "PLANTEDKEY", "PLANTEDSECRET", "SECRETOFENVIRONMENT"


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_OF_ENVIRONMENT)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        store = Store()
        yield store
        store.close()


@pytest.fixture
def store(server):
    server.requests.clear()
    yield server
    server.refused, server.away, server.allowed = (), False, None


@pytest.fixture
def folder(store, request):
    """An empty folder of the test's own."""
    return Folder(store.uri(request.node.name.replace("[", "-").strip("]")))


def made() -> pa.Table:
    return pa.table({"number": list(range(100))})


def test_file_costs_one_request_and_appears_when_it_is_whole(store, folder):
    with folder.create("a/b.txt") as file:
        file.write(b"one, ")
        file.write(b"two")
        assert store.requests == []
    assert len(store.requests) == 1
    assert folder.read("a/b.txt") == b"one, two"
    assert folder.names("") == ["a/b.txt"]


def test_picture_file_costs_one_request(store, folder):
    parquet.write_table(folder, "images/a.parquet", made(), "identity")
    assert len(store.requests) == 1


def test_reading_costs_two_requests_and_missing_one(store, folder):
    folder.write("a.txt", "x")
    store.requests.clear()
    assert folder.get("a.txt") == b"x"
    assert len(store.requests) == 2
    assert folder.get("b.txt") is None
    assert len(store.requests) == 3


@pytest.mark.parametrize("size", [10, 12 << 20])  # bytes; the second would be sent in two parts
def test_exception_publishes_nothing(folder, size):
    def failing():
        with folder.create("a.bin") as file:
            file.write(b"x" * size)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert folder.names("") == []


def test_big_file_is_built_on_disk_and_comes_back_whole(folder, monkeypatch):
    monkeypatch.setattr(remote, "IN_MEMORY", 1 << 20)
    content = np.random.default_rng(0).bytes(12 << 20)
    with folder.create("a.bin") as file:
        for start in range(0, len(content), 1 << 20):
            file.write(content[start : start + (1 << 20)])
    assert folder.read("a.bin") == content


def test_folder_is_cleared_without_a_request_a_file_and_its_neighbour_stays(store, folder):
    for name in ("a/1.txt", "a/2.txt", "a/b/3.txt", "ab/4.txt"):
        folder.write(name, "x")
    store.requests.clear()
    folder.delete_all("a")
    assert len(store.requests) <= 5
    assert folder.names("") == ["ab/4.txt"]
    folder.delete_all("nowhere")
    folder.remove("ab")
    folder.remove("nowhere")
    assert folder.names("") == []


def test_file_and_folder_are_there_and_their_beginning_is_not(folder):
    folder.write("a/b.txt", "x")
    assert [folder.has_entry(name) for name in ("a", "a/b.txt", "a/b", "c")] == [
        True,
        True,
        False,
        False,
    ]
    assert [name for name, _, _ in folder.stamps_of(["a/b.txt", "c"])] == ["a/b.txt"]


def test_parquet_file_of_a_store_is_read_in_few_requests(store, folder):
    table = pa.table({f"column{n}": list(range(100)) for n in range(20)})
    parquet.write_table(folder, "a.parquet", table, "identity")
    store.requests.clear()
    assert parquet.read_table(folder, "a.parquet").to_pydict() == table.to_pydict()
    assert len(store.requests) <= 4


def test_writable_place_is_left_without_a_file(store, folder):
    folder.check_writable()
    held = [request.partition(" ")[0] for request in store.requests]
    assert held == ["LIST", "PUT", "HEAD", "GET", "HEAD", "DELETE", "PUT"]  # the last: the folder
    assert list(folder.stamps("")) == []


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (("PUT", "POST"), "cannot be written: the storage refuses it (PutObject: ACCESS_DENIED"),
        (("HEAD",), "cannot be read: the storage refuses it (HeadObject: ACCESS_DENIED"),
        (("LIST",), "cannot be listed: the storage refuses it (ListObjectsV2: ACCESS_DENIED"),
        (("DELETE",), "cannot be deleted: the storage refuses it (DeleteObject: ACCESS_DENIED"),
        (("PUT", "POST", "HEAD", "LIST", "GET", "DELETE"), "cannot be listed: the storage"),
    ],
)
def test_each_right_that_lacks_is_told_before_anything_is_rendered(store, settings, refused, said):
    settings["output"] = store.uri("denied", f"{KEY}:{SECRET}@")
    store.refused = refused
    with pytest.raises(UserError) as caught:
        workflow.dry_run(config.parse(settings))
    assert said in str(caught.value)
    assert str(caught.value).startswith("output s3://bucket/denied?")
    assert "give credentials that may write, read, list and delete there" in str(caught.value)
    assert_one_clear_line(caught.value)


def test_wrong_bucket_is_told_before_anything_is_rendered(store, settings):
    settings["output"] = store.uri("out", f"{KEY}:{SECRET}@", bucket="no-such")
    with pytest.raises(UserError, match="cannot be written: there is no such bucket") as caught:
        workflow.dry_run(config.parse(settings))
    assert_one_clear_line(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_server_that_is_not_there_is_told_soon(settings, scheme, server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    user = f"{KEY}:{SECRET}@" if scheme == "s3" else "anonymous@"
    settings["output"] = (
        f"{scheme}://{user}bucket/out?endpoint_override=127.0.0.1:{port}&scheme=http"
    )
    with pytest.raises(UserError, match=r"cannot be listed: .* does not answer") as caught:
        workflow.dry_run(config.parse(settings))
    assert_one_clear_line(caught.value)


def assert_one_clear_line(error) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    assert KEY not in str(error)
    assert SECRET not in str(error)


def test_short_outage_is_waited_for(store, folder):
    folder.append("lines.txt", "one")
    for act in (
        lambda: folder.append("lines.txt", "two"),
        lambda: folder.names(""),
        lambda: folder.delete("none.txt"),
    ):
        store.returns_after(1.0)
        act()
    store.returns_after(1.0)
    assert folder.read("lines.txt") == b"one\ntwo\n"


def test_outage_while_a_file_is_read_is_waited_for(store, folder):
    parquet.write_table(folder, "a.parquet", made(), "identity")
    with parquet.open_table(folder, "a.parquet", "identity") as file:
        store.returns_after(1.0)
        assert file.read()["number"].to_pylist() == list(range(100))


def test_long_outage_is_no_damage_and_a_cut_or_missing_file_is(store, folder):
    parquet.write_table(folder, "a.parquet", made(), "identity")
    folder.write("cut.parquet", folder.read("a.parquet")[:-10])
    for name in ("cut.parquet", "none.parquet"):
        with pytest.raises(parquet.DAMAGE):
            parquet.read_table(folder, name)
    with parquet.open_table(folder.without_retries, "a.parquet") as file:
        store.away = True
        with pytest.raises(StorageError):
            file.read()
    for act in (
        lambda: parquet.read_table(folder.without_retries, "a.parquet"),
        lambda: folder.without_retries.get("a.parquet"),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert is_outage(caught.value)
        assert not isinstance(caught.value, parquet.DAMAGE)


def test_outage_and_refusal_are_told_apart_from_what_work_does_wrong(store, folder):
    store.refused = ("PUT",)
    with pytest.raises(StorageError) as caught:
        folder.write("a.txt", "x")
    travelled = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert travelled.denied
    assert "--runtime-env-json" in worker_hint(travelled)
    store.refused, store.away = (), True
    with pytest.raises(StorageError) as caught:
        folder.without_retries.write("a.txt", "x")
    assert worker_hint(caught.value) == ""
    assert is_outage(OSError(errno.ENOSPC, "No space left on device"))
    assert is_outage(OSError(errno.EROFS, "Read-only file system"))
    assert not is_outage(OSError("Couldn't deserialize thrift"))
    assert not is_outage(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not is_outage(RuntimeError("out of memory"))


def test_run_on_a_store_that_is_away_is_not_taken_for_none(store, folder, monkeypatch):
    monkeypatch.setattr(Folder, "patience", 0.0)
    store.away = True
    with pytest.raises(StorageError, match="does not answer as it should"):
        runs.load_run(folder.uri)
    store.away = False
    with pytest.raises(UserError, match="has no run"):
        runs.load_run(folder.uri)


def test_outage_ends_a_job_with_one_line_and_code_4(store, folder, settings, monkeypatch, capsys):
    store.away = True
    read = config.parse(settings | {"output": folder.uri})
    with pytest.raises(SystemExit) as left:
        run_as_job(lambda: workflow.report(read))
    assert left.value.code == 4
    said = capsys.readouterr().err
    assert said.startswith(f"error: run.json in {folder} cannot be read: the storage does not")
    assert said.count("\n") == 1


def test_outage_at_the_end_hides_no_error_and_leaves_a_claim_that_is_taken_over(
    store, folder, monkeypatch
):
    monkeypatch.setattr(Folder, "patience", 0.0)

    def failing():
        entry = history.Invocation(Workers())
        with output_lock(folder), history.record_invocation(folder, entry):
            store.away = True
            raise UserError("the error to be seen")

    with pytest.raises(UserError, match="the error to be seen"):
        failing()
    store.away = False
    key, *others = folder.names("")
    assert layout.token_of(key)
    assert others == [layout.CLAIM, layout.HISTORY]
    assert history.read(folder)[0].get("exit_code") is None


@pytest.mark.parametrize(
    ("rounds", "dead"),
    [
        pytest.param(1, False, id="no claim"),
        pytest.param(1, True, id="a dead claim"),
        pytest.param(15, False, id="no claim, 15 rounds", marks=pytest.mark.slow),
        pytest.param(15, True, id="a dead claim, 15 rounds", marks=pytest.mark.slow),
    ],
)
def test_of_drivers_that_begin_at_one_moment_one_owns_the_folder(store, rounds, dead):
    def place(number):
        return store.uri(f"race-{rounds}-{dead}-{number}")

    assert owners(place, rounds, 4, dead, beat=1.0) == [1] * rounds


def test_driver_that_lost_its_claim_changes_nothing_more_on_a_store(store, folder):
    folder.write("a.txt", "theirs")
    folder.write("b/c.txt", "theirs")
    another = Folder(folder.uri)

    def lost():
        with output_lock(folder, beat_seconds=1e6):
            folder.write("a.txt", "ours, while it owns the folder")
            worker = pickle.loads(pickle.dumps(folder))  # noqa: S301
            leave_a_dead_claim(another)
            for key in set(filter(layout.token_of, another.top_names())):
                another.delete(key)
            another.write("a.txt", "theirs")
            for one in (folder, worker):
                for act in (
                    lambda one=one: one.write("a.txt", "ours"),
                    lambda one=one: one.append("a.txt", "ours"),
                    lambda one=one: one.delete("a.txt"),
                    lambda one=one: one.delete_all("b"),
                    lambda one=one: one.remove("b"),
                ):
                    with pytest.raises(OutputLost):
                        act()

    with pytest.raises(OutputLost):
        lost()
    assert another.names("") == ["a.txt", "b/c.txt", layout.CLAIM]
    assert another.read("a.txt") == b"theirs"


def test_driver_that_is_taken_over_during_an_outage_does_not_write_after_it(
    store, folder, monkeypatch
):
    upload, another = remote.upload, Folder(folder.uri)

    def breaks_off(*arguments):
        for key in filter(layout.token_of, another.top_names()):
            another.delete(key)
        monkeypatch.setattr(remote, "upload", upload)
        raise ConnectionError("reset by peer")

    def lost():
        with output_lock(folder, beat_seconds=1e6):
            monkeypatch.setattr(remote, "upload", breaks_off)
            folder.write("a.txt", "ours")

    with pytest.raises(OutputLost):
        lost()
    assert not folder.exists("a.txt")


def test_missing_reference_is_refused_before_anything_is_rendered(store, settings):
    where = store.uri("nowhere/ref.npz", f"{KEY}:{SECRET}@")
    settings["score"] = {"reference": where}
    with pytest.raises(UserError, match=r"ref\.npz.* does not exist") as caught:
        workflow.prepare(config.parse(settings))
    assert_one_clear_line(caught.value)
    store.away = True
    with pytest.raises(UserError, match=r"score\.reference: .*does not answer"):
        workflow.prepare(config.parse(settings))


@pytest.mark.parametrize("place", ["ref.npz", "a/b/ref.npz"])
@pytest.mark.parametrize("endpoint", ["127.0.0.1:{port}&scheme=http", "http://127.0.0.1:{port}"])
def test_file_of_a_uri_with_parameters_is_found(store, place, endpoint):
    uri = f"s3://{BUCKET}/{place}?endpoint_override={endpoint.format(port=store.port)}"
    folder, name = Folder.of_file(uri)
    folder.write(name, "x")
    assert name == "ref.npz"
    assert f"PUT {place}" in store.requests


def test_job_on_a_store_is_killed_resumed_and_equal_to_a_local_one(store, settings, tmp_path):
    settings["workers"] = {"executor": "local"}
    settings["prompts"] |= {"shard_size": 1, "limit": 6}
    local = config.parse(settings | {"score": {"reference": None}})
    assert workflow.render(local) == 0

    secrets = f"{KEY}:{SECRET}@"
    settings["score"] = {"reference": store.uri("job/ref.npz", secrets)}
    settings["output"] = store.uri("job/out", secrets)
    remotely = config.parse(settings)
    pictures = str(Path(local.output) / layout.images("sd15", "baseline"))
    assert workflow.reference(remotely, pictures) == 0

    kill_after_two_files(store, settings, tmp_path)
    folder = Folder(settings["output"])
    before = folder.names(layout.IMAGES)
    assert 1 <= len(before) < 12  # the second may have been under way
    store.requests.clear()
    assert workflow.render(remotely) == 0
    put = [request for request in store.requests if request.startswith("PUT job/out/images/")]
    assert len(put) == 12 - len(before)
    assert not any(name in request for name in before for request in put)

    run = runs.load_run(settings["output"])
    for arm in ("baseline", "tgate"):
        assert pictures_of(folder, arm) == pictures_of(Folder(local.output), arm)
    assert [entry["exit_code"] for entry in history.read(folder)] == [None, 0]
    assert workflow.score(remotely) == 0
    assert workflow.report(remotely) == 0
    report = json.loads(folder.read(layout.REPORT_JSON))
    assert [arm["images"] for arm in report["arms"]] == [6, 6]
    assert len(prompt_store.stored_shards(run.folder)) == 6
    assert_no_secret_in(folder)
    assert_exported(folder, settings["output"], store.uri("job/files", secrets), store)


def assert_exported(folder, output, to, store) -> None:
    """A run in a store is exported into it; a second export writes nothing."""
    assert workflow.export(output, to, arm="tgate") == 0
    target = Folder(to)
    lines = target.read("sd15/tgate/metadata.jsonl").splitlines()
    rows = {row["prompt_id"]: row["file_name"] for row in map(json.loads, lines)}
    assert {
        prompt: target.read(f"sd15/tgate/{name}") for prompt, name in rows.items()
    } == pictures_of(folder, "tgate")
    store.requests.clear()
    assert workflow.export(output, to, arm="tgate") == 0
    assert [request for request in store.requests if "webp" in request] == []


def test_outage_ends_a_check_and_is_no_fault_of_the_files(store, settings, monkeypatch):
    settings["workers"] = {"executor": "local"}
    settings["score"] = {"reference": None}
    settings["output"] = store.uri("checked", f"{KEY}:{SECRET}@")
    assert workflow.render(config.parse(settings)) == 0
    found, _ = verify(settings["output"])
    assert found.faults == []
    monkeypatch.setattr(Folder, "patience", 0.0)
    store.allowed = 30  # of the more than 100 that it takes
    with pytest.raises(StorageError, match="does not answer as it should"):
        verify(settings["output"])


def kill_after_two_files(store, settings, tmp_path) -> None:
    """Runs jobs/render.py, and kills it once two picture files are in the store."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    store.requests.clear()
    with subprocess.Popen(
        [sys.executable, "jobs/render.py", "--config", str(file)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        while sum(r.startswith("PUT job/out/images/") for r in list(store.requests)) < 2:
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.005)
        job.send_signal(signal.SIGKILL)


def pictures_of(folder, arm) -> dict[str, bytes]:
    found = {}
    for name in folder.names(layout.images("sd15", arm), ".parquet"):
        for row in parquet.read_table(folder, name, ["prompt_id", "image"]).to_pylist():
            found[row["prompt_id"]] = row["image"]["bytes"]
    return found


def assert_no_secret_in(folder) -> None:
    names = folder.names("")
    assert len(names) > 30
    for name in names:
        content = folder.read(name)
        if name.endswith(".parquet"):  # its pages are packed
            content += repr(pd.read_parquet(pa.BufferReader(content)).to_dict()).encode()
            content += repr(pq.read_schema(pa.BufferReader(folder.read(name))).metadata).encode()
        for secret in (KEY, SECRET, SECRET_OF_ENVIRONMENT):
            assert secret.encode() not in content, name


def test_reference_is_read_from_a_store(store, tmp_path):
    class Two:
        name, dimensions, sha256 = "two", 2, "0"

    np.savez(tmp_path / "ref.npz", mu=np.zeros(2), sigma=np.eye(2))
    folder = Folder(store.uri("references"))
    folder.write("ref.npz", (tmp_path / "ref.npz").read_bytes())
    found = load_reference(store.uri("references/ref.npz", f"{KEY}:{SECRET}@"), Two())
    assert found.statistics.dimensions == 2
    assert SECRET not in found.name
