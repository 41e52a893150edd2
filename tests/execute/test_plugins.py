"""A module of one's own that cannot be used is one line, whatever is wrong with it."""

import subprocess
import sys
from pathlib import Path

import pytest

import tgate_batch
from tgate_batch.errors import UserError
from tgate_batch.execute import import_path, plugins

BROKEN = {  # what a module says: what the line has to have
    "def half(:": ["SyntaxError", "line 1"],
    "\n1 / 0": ["ZeroDivisionError: division by zero", "{name}.py:2"],
    "raise RuntimeError('two\\nlines')": ["RuntimeError: two lines", "{name}.py:1"],
    "assert False": ["AssertionError", "{name}.py:1"],
    "import sys; sys.exit('no')": ["SystemExit: no", "{name}.py:1"],
    "x = 'a\0b'": ["SyntaxError"],
    "import no_such_module": ["No module named 'no_such_module'"],
    "from os import no_such_name": ["cannot import name 'no_such_name'"],
    "x = 1": ["neither a FAMILY nor a METRIC"],
    "FAMILY = 3": ["has no FAMILY"],
    "METRIC = 3": ["Fix: make it an ImageMetric"],
}


@pytest.mark.parametrize("text", BROKEN)
def test_module_that_cannot_be_used_is_one_line(text, tmp_path, monkeypatch):
    name = f"plugin_{list(BROKEN).index(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as told:
        plugins.register([name])
    (line,) = str(told.value).splitlines()
    assert name in line
    for words in BROKEN[text]:
        assert words.format(name=name) in line


def test_command_says_it_without_a_traceback_and_with_code_2(tmp_path):
    (tmp_path / "mine.py").write_text("def half(:")
    words = ["render", "--config", "demo", "--output", "out", "--set", "plugins=[mine]"]
    done = subprocess.run(
        [sys.executable, "-m", "tgate_batch", *words],
        cwd=tmp_path,  # from where python -m imports
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: plugins: mine cannot be imported (SyntaxError: ")
    assert line.endswith(". Fix: correct the module")
    assert not (tmp_path / "out").exists()


def test_an_output_and_the_current_folder_are_taken_off_the_import_path(tmp_path, monkeypatch):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir(), other.mkdir()
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(tmp_path)
    path = ["", ".", str(tmp_path), "out", str(out), str(tmp_path / "link"), str(other), "other"]
    assert import_path.without_folders([".", "out"], path) == [str(other), "other"]
    assert import_path.without_folders(["out"], path)[:3] == ["", ".", str(tmp_path)]


def test_folder_of_this_package_stays_on_the_import_path_as_the_last(monkeypatch):
    ours = str(Path(tgate_batch.__file__).resolve().parents[1])
    monkeypatch.chdir(ours)
    assert import_path.without_folders(["."], ["", ours, "/usr/lib"]) == ["/usr/lib", ours]
