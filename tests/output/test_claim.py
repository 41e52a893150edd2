import json
import os
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from tgate_batch.errors import UserError
from tgate_batch.output import layout
from tgate_batch.output.claim import claimed
from tgate_batch.storage import Folder

BEAT = 0.02  # seconds


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def claim(**changes) -> str:
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "since": "2026-01-01 10:00:00 +0000",
        "token": "t",
        "beats": 0,
    }
    return json.dumps(mine | changes)


def test_claim_stands_during_the_block_alone(folder):
    with claimed(folder):
        assert json.loads(folder.read(layout.CLAIM))["pid"] == os.getpid()
    assert folder.names("") == []


def test_claim_is_given_back_after_an_error(folder):
    with pytest.raises(RuntimeError), claimed(folder):
        raise RuntimeError
    assert folder.names("") == []


def test_second_driver_is_told_host_process_and_time(folder):
    other = psutil.Process(os.getppid())
    folder.write(layout.CLAIM, claim(pid=other.pid, process_started=other.create_time()))
    with pytest.raises(UserError) as caught, claimed(folder):
        pass
    for word in (socket.gethostname(), str(other.pid), "2026-01-01 10:00:00"):
        assert word in str(caught.value)
    assert folder.exists(layout.CLAIM)


def test_claim_that_this_process_holds_is_refused_and_one_that_it_left_is_taken_over(folder):
    with claimed(folder):
        left = folder.read(layout.CLAIM)
        with pytest.raises(UserError, match="is in use"), claimed(folder):
            pass
    folder.write(layout.CLAIM, left)  # an outage kept it from being deleted
    with claimed(folder):
        pass
    assert folder.names("") == []


def test_claim_of_a_dead_process_is_taken_over(folder):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    folder.write(layout.CLAIM, claim(pid=int(done.stdout)))
    with claimed(folder):
        assert json.loads(folder.read(layout.CLAIM))["pid"] == os.getpid()


def test_claim_of_another_process_with_the_same_number_is_taken_over(folder):
    folder.write(layout.CLAIM, claim(process_started=1.0))
    with claimed(folder):
        pass


def test_still_claim_of_another_machine_is_taken_over(folder):
    folder.write(layout.CLAIM, claim(host="elsewhere"))
    with claimed(folder, beat_seconds=BEAT):
        assert json.loads(folder.read(layout.CLAIM))["host"] == socket.gethostname()


def test_beating_claim_of_another_machine_is_refused(folder):
    ended = threading.Event()

    def beat():
        beats = 0
        while not ended.wait(BEAT / 2):
            beats += 1
            folder.write(layout.CLAIM, claim(host="elsewhere", beats=beats))

    folder.write(layout.CLAIM, claim(host="elsewhere"))
    holder = threading.Thread(target=beat)
    holder.start()
    try:
        with pytest.raises(UserError, match="on elsewhere"), claimed(folder, beat_seconds=BEAT):
            pass
    finally:
        ended.set()
        holder.join()


def test_damaged_claim_is_no_claim(folder):
    folder.write(layout.CLAIM, "{")
    with claimed(folder):
        pass
