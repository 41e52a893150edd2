"""What a command says: broken between words in a terminal, and apart from results."""

import io
import json
import shutil
from contextlib import redirect_stdout
from os import terminal_size

import pytest

from tgate_batch import say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """20 columns."""
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: terminal_size((20, 5)))


def in_terminal(text: str) -> str:
    with redirect_stdout(Terminal()) as shown:
        say.info(text)
    return shown.getvalue()


def test_lines_break_between_words_and_never_in_one():
    assert in_terminal("one two three four five") == "one two three four\n  five\n"
    place = "/a/long/place/of-a-page/index.html"
    assert in_terminal(f"report: {place}") == f"report:\n  {place}\n"


def test_line_that_fits_stays_as_it_is():
    assert in_terminal("a      b         20") == "a      b         20\n"


def test_line_in_a_log_is_never_broken(capsys):
    say.info("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_json_lines_are_never_broken():
    say.as_json()
    try:
        (line,) = in_terminal("one two three four five").splitlines()
    finally:
        say.as_json(False)
    assert json.loads(line)["text"] == "one two three four five"


def test_standard_output_is_for_results_while_lines_go_apart(capsys):
    with say.apart():
        say.info("half is done")
    say.info("done")
    assert capsys.readouterr() == ("done\n", "half is done\n")


def test_what_moves_a_cursor_or_hides_is_shown_as_an_escape(capsys):
    say.info("a\x1b[2Jb\nsound: c\r\x00\u202e\x9b\udc80")
    assert capsys.readouterr().out == (r"a\x1b[2Jb\nsound: c\r\x00\u202e\x9b\udc80" + "\n")


def test_letters_spaces_and_emoji_of_any_script_are_shown_as_they_are(capsys):
    text = "Käse 奶酪\u3000\u00a0 می\u200cخواهم \N{WOMAN}\u200d\N{ROCKET}"
    say.info(text)
    assert capsys.readouterr().out == text + "\n"
