"""jobs/image.py: one picture, or one line that says why not."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from tgate_batch.twins import save_twin

JOB = Path(__file__).parents[2] / "jobs" / "image.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def sd15(folder):
    return str(save_twin("sd15", folder / "sd15"))


@pytest.fixture
def run(monkeypatch, capfd):
    def run(*options):
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(JOB), run_name="__main__")
        return stop.value.code, capfd.readouterr()

    return run


@pytest.mark.parametrize("more", [(), ("--deepcache",)])
def test_a_prompt_becomes_test_png(run, sd15, tmp_path, more):
    options = ("--model", "sd_1.5", "--path", sd15, "--prompt", "a cat", "--saved_path", tmp_path)
    code, printed = run(*options, "--inference_step", 3, "--gate_step", 2, *more)
    assert code == 0, printed.err
    assert printed.out.strip().endswith("test.png")
    assert "3/3" in printed.err  # the progress bar
    with Image.open(tmp_path / "test.png") as picture:
        assert picture.size == (64, 64)


WRONG = {
    "no such model": (["--model", "sd9", "--prompt", "x"], "unknown model 'sd9'"),
    "gate at 0": (["--prompt", "x", "--gate_step", "0"], "gate_step=0"),
    "gate beyond": (["--prompt", "x", "--gate_step", "26"], "beyond the 25 steps"),
    "no prompt": (["--model", "sdxl"], "--prompt"),
    "no picture": (["--model", "svd", "--prompt", "x"], "--image"),
    "picture missing": (["--model", "svd", "--image", "/no/such.png"], "No such file"),
    "not a picture": (["--model", "svd", "--image", str(JOB)], "is not a picture"),
    "no checkpoint": (["--prompt", "x", "--path", "/no/such"], "not a diffusers folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_line_and_exit_code_2(run, tmp_path, case):
    options, words = WRONG[case]
    code, printed = run(*options, "--saved_path", tmp_path / "new")
    assert code == 2
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").touch()
    code, printed = run("--prompt", "x", "--saved_path", tmp_path / "file")
    assert code == 2
    assert printed.err.startswith("error: --saved_path ")
