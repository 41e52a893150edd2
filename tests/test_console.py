"""What a command says: broken between words in a terminal, and apart from results."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from os import terminal_size

import pytest

from tgate_batch import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """20 columns, whatever the environment says."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: terminal_size((20, 5)))


def in_terminal(text: str) -> str:
    with redirect_stdout(Terminal()) as shown:
        console.info(text)
    return shown.getvalue()


def test_lines_break_between_words_and_never_in_one():
    assert in_terminal("one two three four five") == "one two three four\n  five\n"
    place = "/a/long/place/of-a-page/index.html"
    assert in_terminal(f"report: {place}") == f"report:\n  {place}\n"


def test_line_that_fits_stays_as_it_is():
    assert in_terminal("a      b         20") == "a      b         20\n"


def test_line_in_a_log_is_never_broken(capsys):
    console.info("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_json_lines_are_never_broken():
    console.as_json()
    try:
        (line,) = in_terminal("one two three four five").splitlines()
    finally:
        console.as_json(False)
    assert json.loads(line)["text"] == "one two three four five"


def test_standard_output_is_for_results_while_lines_go_apart(capsys):
    with console.apart():
        console.info("half is done")
    console.info("done")
    assert capsys.readouterr() == ("done\n", "half is done\n")


def test_what_moves_a_cursor_or_hides_is_shown_as_an_escape(capsys):
    console.info("a\x1b[2Jb\nsound: c\r\x00\u202e\x9b\udc80")
    assert capsys.readouterr().out == (r"a\x1b[2Jb\nsound: c\r\x00\u202e\x9b\udc80" + "\n")


def test_letters_spaces_and_emoji_of_any_script_are_shown_as_they_are(capsys):
    text = "Käse 奶酪\u3000\u00a0 می\u200cخواهم \N{WOMAN}\u200d\N{ROCKET}"
    console.info(text)
    assert capsys.readouterr().out == text + "\n"


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


LIBRARY = """
import logging, os, subprocess, sys, warnings
from tgate_batch import console
from tgate_batch.errors import UserError

def library():
    print("from print")
    sys.stderr.write("50%|#####     | a bar")
    warnings.warn("from warnings")
    logging.getLogger("library").warning("from logging")
    os.write(2, b"from beneath Python")
    subprocess.run(["echo", "from a process"])

with console.alone():
    library()
    console.info("ours")
    console.warning("ours too")
"""


def test_lines_of_libraries_stay_out_of_the_terminal_and_ours_go_there(tmp_path):
    done = run(LIBRARY, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\n", "warning: ours too\n")
    assert list(tmp_path.iterdir()) == [], "the log is removed"


def test_after_an_error_that_nobody_expected_the_lines_of_libraries_are_kept_and_named(tmp_path):
    done = run(LIBRARY + "    raise KeyError('why')\n", TMPDIR=str(tmp_path))
    (log,) = tmp_path.iterdir()
    first, *_, last = done.stderr.removeprefix("warning: ours too\n").splitlines()
    assert first == f"lines of other libraries: {log}"
    assert last == "KeyError: 'why'"
    kept = log.read_text()
    for line in ("from print", "a bar", "from warnings", "from logging", "from beneath Python"):
        assert line in kept
    assert "from a process" in kept


def test_after_an_error_of_the_user_no_log_is_left(tmp_path):
    done = run(LIBRARY + "    raise UserError('why')\n", TMPDIR=str(tmp_path))
    assert "lines of other libraries" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_after_it_goes_to_the_terminal_again():
    after = "print('after', flush=True)\nos.write(2, b'beneath')\n"
    done = run(LIBRARY + after)
    assert done.stdout == "ours\nafter\n"
    assert done.stderr == "warning: ours too\nbeneath"
