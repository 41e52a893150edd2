import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tgate_batch.config import Workers
from tgate_batch.errors import StorageError, UserError
from tgate_batch.output import history, layout
from tgate_batch.output.lock import output_lock
from tgate_batch.storage import Folder

OLDER = {"started": "2026-01-01T10:00:00+0000", "device": "CPU", "exit_code": 0, "seconds": 7.0}
DEAD = {"host": "elsewhere", "pid": 1, "since": "2026-01-01", "token": "t", "beats": 5}
BEAT = 0.02  # seconds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "whole_process", False)
    return Folder(str(tmp_path / "out"))


def lines(folder):
    return [json.loads(line) for line in folder.read(layout.HISTORY).splitlines()]


def recorded(folder, **changes):
    """A whole invocation that held three workers at most."""
    invocation = history.Invocation(Workers(gpus_each=0.5))
    with output_lock(folder, invocation.so_far), history.record_invocation(folder, invocation):
        for workers in (1, 3, 2):
            invocation.set_workers(workers)
        invocation.update(changes)
    return invocation


def killed(folder, seconds, workers):
    """What an invocation leaves that is killed on another machine: no end, and its claim."""
    invocation = history.Invocation(Workers(cpus_each=2))
    with history.record_invocation(folder, invocation):
        start = folder.read(layout.HISTORY)
    folder.write(layout.HISTORY, start)
    said = {"id": invocation["id"], "born": 1.0, "seconds": seconds, "workers": workers}
    folder.write(layout.CLAIM, json.dumps(DEAD | said))


def test_start_and_end_are_lines_of_one_id_and_one_entry(folder):
    recorded(folder, device="CPU", exit_code=0)
    start, end = lines(folder)
    assert (start["event"], end["event"]) == ("start", "end")
    assert start["id"] == end["id"]
    assert abs(start["born"] - time.time()) < 60
    (entry,) = history.read(folder)
    assert (entry["workers"], entry["device"], entry["exit_code"]) == (3, "CPU", 0)
    assert (entry["gpus_each"], entry["cpus_each"], entry["killed"]) == (0.5, 1, False)
    assert entry["seconds"] == end["seconds"]
    assert entry["command"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError, 2), (StorageError, 4), (KeyboardInterrupt, 130), (RuntimeError, 1)],
)
def test_end_is_written_after_an_error_too(folder, error, code):
    with pytest.raises(error), history.record_invocation(folder, history.Invocation(Workers())):
        raise error("why")
    assert history.read(folder)[0]["exit_code"] == code


def test_entry_of_this_process_is_known_up_to_now(folder):
    invocation = history.Invocation(Workers())
    with history.record_invocation(folder, invocation):
        invocation.set_workers(2)
        (entry,) = history.read(folder)
    assert "exit_code" not in entry
    assert (entry["workers"], entry["seconds"] >= 0) == (2, True)


def test_older_lines_are_entries_and_torn_ones_are_none(folder):
    folder.append(layout.HISTORY, json.dumps(OLDER))
    recorded(folder)
    folder.append(layout.HISTORY, '{"event": "sta')
    folder.append(layout.HISTORY, json.dumps(OLDER | {"seconds": 8.0}))
    entries = history.read(folder)
    assert entries[0] == OLDER
    assert [entry["seconds"] for entry in entries][0::2] == [7.0, 8.0]


def test_killed_invocation_lived_as_long_as_its_claim_says(folder):
    killed(folder, seconds=41.5, workers=2)
    (entry,) = history.read(folder)
    assert (entry["seconds"], entry["workers"], entry["cpus_each"]) == (41.5, 2, 2)
    assert "exit_code" not in entry
    folder.delete(layout.CLAIM)
    assert "seconds" not in history.read(folder)[0]


def test_who_takes_over_a_dead_claim_writes_the_end_in_its_place(folder):
    killed(folder, seconds=41.5, workers=2)
    with output_lock(folder, beat_seconds=BEAT):
        pass
    _, end = lines(folder)
    assert (end["event"], end["killed"], end["exit_code"]) == ("end", True, None)
    (entry,) = history.read(folder)
    assert (entry["seconds"], entry["workers"]) == (41.5, 2)
    assert entry["command"]


def test_claim_that_outlives_its_end_adds_no_other(folder):
    invocation = recorded(folder)
    folder.write(layout.CLAIM, json.dumps(DEAD | invocation.so_far() | {"seconds": 1e6}))
    with output_lock(folder, beat_seconds=BEAT):
        pass
    assert len(lines(folder)) == 2


def test_beats_carry_what_the_holder_says(folder):
    count = SimpleNamespace(seconds=0)

    def says():
        count.seconds += 1
        return {"seconds": count.seconds}

    with output_lock(folder, says, beat_seconds=BEAT):
        while json.loads(folder.read(layout.CLAIM))["seconds"] < 3:
            time.sleep(BEAT)


def test_time_of_a_job_counts_from_the_birth_of_its_process():
    code = (
        "import time; time.sleep(0.5); from tgate_batch.output import history; "
        "from tgate_batch.config import Workers; history.whole_process = {}; "
        "print(history.Invocation(Workers()).so_far()['seconds'])"
    )
    whole, block = (
        float(subprocess.run([sys.executable, "-c", code.format(w)], capture_output=True).stdout)
        for w in (True, False)
    )
    assert whole > 0.5
    assert block < whole


def test_age_of_this_process_is_that_of_the_process_table():
    import psutil

    age = time.time() - psutil.Process(os.getpid()).create_time()
    assert history.process_seconds() == pytest.approx(age, abs=1.5)  # it counts boots in seconds
