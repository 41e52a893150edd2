import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from racers import LEFT, TOKEN, owners

from tgate_batch.errors import OutputLost, UserError
from tgate_batch.output import layout, shutdown
from tgate_batch.output.lock import check_free, lock_holder, output_lock
from tgate_batch.storage import Folder

BEAT = 0.05  # seconds


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    """A job that has lost its output ends its process, which here is that of the tests."""
    monkeypatch.setattr(shutdown, "_is_job", False)


def claim(**changes) -> str:
    """A claim of another machine."""
    return json.dumps(LEFT | {"beats": 0} | changes)


def gone() -> int:
    """The number of a process that has ended."""
    code = "import os; print(os.getpid())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)


def mine(folder) -> dict:
    """What this process writes into its claim."""
    with output_lock(folder, beat_seconds=BEAT):
        return json.loads(folder.read(layout.CLAIM))


@contextmanager
def beating(folder, **changes):
    """Another driver that owns the folder, as its files show it."""
    ended = threading.Event()

    def beat():
        beats = 0
        while not ended.wait(BEAT / 10):
            beats += 1
            folder.write(layout.CLAIM, claim(beats=beats, **changes))

    folder.write(layout.claim_key(TOKEN), claim(**changes))
    folder.write(layout.CLAIM, claim(**changes))
    owner = threading.Thread(target=beat)
    owner.start()
    try:
        yield
    finally:
        ended.set()
        owner.join()


def test_claim_stands_during_the_block_alone(folder):
    with output_lock(folder):
        assert json.loads(folder.read(layout.CLAIM))["pid"] == os.getpid()
    assert folder.names("") == []


def test_claim_is_given_back_after_an_error(folder):
    with pytest.raises(RuntimeError), output_lock(folder):
        raise RuntimeError
    assert folder.names("") == []


def test_second_driver_is_told_host_process_and_time(folder):
    with beating(folder):
        for act in (lambda: output_lock(folder, beat_seconds=BEAT).__enter__(), check_free):
            with pytest.raises(UserError, match="is in use") as caught:
                act() if act is not check_free else check_free(folder, BEAT)
            for word in ("process 7 on elsewhere", "2026-01-01 10:00:00"):
                assert word in str(caught.value)
        assert [layout.token_of(name) for name in folder.top_names()] == [TOKEN, None]


def test_claim_that_this_process_holds_is_refused_and_one_that_it_left_is_taken_over(folder):
    with output_lock(folder):
        left = {name: folder.read(name) for name in folder.names("")}
        with pytest.raises(UserError, match="is in use"), output_lock(folder):
            pass
    for name, content in left.items():
        folder.write(name, content)  # an outage kept them from being deleted
    with output_lock(folder):
        pass
    assert folder.names("") == []


def test_claim_of_a_process_that_is_gone_is_taken_over_at_once(folder):
    left = mine(folder) | {"pid": gone(), "token": TOKEN}
    folder.write(layout.claim_key(TOKEN), json.dumps(left))
    folder.write(layout.CLAIM, json.dumps(left))
    assert lock_holder(folder) is None
    with output_lock(folder, beat_seconds=1e6):
        assert json.loads(folder.read(layout.CLAIM))["pid"] == os.getpid()
    assert folder.names("") == []


@pytest.mark.parametrize("elsewhere", ["another boot", "another PID namespace"])
def test_number_of_a_process_says_nothing_in_another_boot_or_container(folder, elsewhere):
    left = mine(folder)
    boot, _, space = left["processes"].partition(" ")
    other = f"{TOKEN} {space}" if elsewhere == "another boot" else f"{boot} pid:[1]"
    with beating(folder, host=left["host"], pid=gone(), processes=other):
        assert lock_holder(folder)["token"] == TOKEN
        with pytest.raises(UserError, match="is in use"), output_lock(folder, beat_seconds=BEAT):
            pass


def test_set_clock_and_moved_boot_time_do_not_make_a_living_claim_dead(folder):
    """As older claims had it, the start of a process in seconds of a clock that somebody sets."""
    with (
        beating(folder, host=socket.gethostname(), pid=os.getppid(), process_started=1.0),
        pytest.raises(UserError, match="is in use"),
        output_lock(folder, beat_seconds=BEAT),
    ):
        pass


@pytest.mark.parametrize("key", [True, False], ids=["claim", "claim of an older version"])
def test_claim_that_stands_still_is_taken_over_on_every_machine(folder, key):
    for host in (socket.gethostname(), "elsewhere"):
        if key:
            folder.write(layout.claim_key(TOKEN), claim(host=host, pid=os.getppid()))
        folder.write(layout.CLAIM, claim(host=host, pid=os.getppid()))
        with output_lock(folder, beat_seconds=BEAT):
            assert json.loads(folder.read(layout.CLAIM))["host"] == socket.gethostname()
            assert not folder.exists(layout.claim_key(TOKEN))


def test_beating_claim_of_an_older_version_is_refused(folder):
    with beating(folder):
        folder.delete(layout.claim_key(TOKEN))  # it has none
        with pytest.raises(UserError, match="on elsewhere"), output_lock(folder, beat_seconds=BEAT):
            pass


def test_damaged_claim_is_no_claim(folder):
    folder.write(layout.CLAIM, "{")
    folder.write(layout.claim_key(TOKEN), "{")
    with output_lock(folder, beat_seconds=BEAT):
        pass
    assert folder.names("") == []


@pytest.mark.parametrize("token", ["../victim", "x/../../victim", "/victim"])
def test_token_of_a_stranger_names_no_file_elsewhere(folder, tmp_path, token):
    victim = tmp_path / "victim.json"
    victim.write_text("x")
    folder.write("claim-../x", "x")
    folder.write("claim-x/x", "x")
    folder.write(layout.CLAIM, claim(token=token))
    with output_lock(folder, beat_seconds=BEAT):
        pass
    assert victim.exists()


def test_driver_that_lost_its_claim_writes_and_deletes_nothing_more(folder):
    folder.write("a.txt", "theirs")
    folder.write("b/c.txt", "theirs")

    def stale(act):
        with pytest.raises(OutputLost, match="no longer belongs to this run"):
            act()

    def lost():
        with output_lock(folder, beat_seconds=1e6):
            worker = pickle.loads(pickle.dumps(folder))  # noqa: S301
            for name in folder.top_names():
                if layout.token_of(name):
                    os.unlink(folder.path(name))  # as whoever takes it over does
            folder_of_another = Folder(folder.uri)
            folder_of_another.write(layout.CLAIM, claim())
            for one in (folder, folder.without_retries, worker):
                stale(lambda one=one: one.write("a.txt", "ours"))
                stale(lambda one=one: one.append("a.txt", "ours"))
                stale(lambda one=one: one.delete("a.txt"))
                stale(lambda one=one: one.delete_all("b"))
                stale(lambda one=one: one.remove("b"))

    with pytest.raises(OutputLost):
        lost()
    assert folder.names("") == ["a.txt", "b/c.txt", layout.CLAIM]
    assert folder.read("a.txt") == b"theirs"
    assert json.loads(folder.read(layout.CLAIM))["token"] == TOKEN
    folder.write("a.txt", "ours")  # the claim's end is the fence's end


def test_driver_whose_claim_was_taken_over_does_not_take_it_back_with_its_next_beat(folder):
    def first():
        with output_lock(folder, beat_seconds=BEAT):
            own = next(filter(layout.token_of, folder.top_names()))
            os.unlink(folder.path(own))
            folder_of_another.write(layout.CLAIM, claim())
            time.sleep(4 * BEAT)
            assert json.loads(folder.read(layout.CLAIM))["token"] == TOKEN

    folder_of_another = Folder(folder.uri)
    with pytest.raises(OutputLost):
        first()
    assert json.loads(folder.read(layout.CLAIM))["token"] == TOKEN


def test_unfinished_file_of_a_driver_that_was_taken_over_never_appears(folder, tmp_path):
    """It is suspended after it found its claim, and before it renames: no file is to check then."""
    other = Folder(folder.uri)
    folder.write(layout.claim_key(TOKEN), claim())
    folder.write(layout.CLAIM, claim())
    folder.fence = folder.path(layout.claim_key(TOKEN))

    def suspended():
        with folder.create("a.txt") as file:
            file.write(b"of the first run")
            with output_lock(other, beat_seconds=BEAT):
                other.write("a.txt", "of the second run")

    with pytest.raises(OutputLost):
        suspended()
    assert other.read("a.txt") == b"of the second run"


RACES = [
    pytest.param(5, 3, False, id="no claim"),
    pytest.param(5, 3, True, id="a dead claim"),
    pytest.param(100, 6, False, id="no claim, 100 rounds", marks=pytest.mark.slow),
    pytest.param(100, 6, True, id="a dead claim, 100 rounds", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("rounds", "racers", "dead"), RACES)
def test_of_drivers_that_begin_at_one_moment_one_owns_the_folder(tmp_path, rounds, racers, dead):
    found = owners(lambda number: str(tmp_path / str(number)), rounds, racers, dead, 4 * BEAT)
    assert found == [1] * rounds
