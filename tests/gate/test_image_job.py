"""jobs/image.py: one picture, or one line that says why not."""

import argparse
import runpy
import sys
from pathlib import Path

import av
import diffusers
import pytest
import tgate as reference
import torch
from PIL import Image

from tgate_batch.cli import image
from tgate_batch.models import catalogue
from tgate_batch.models.catalogue import save_tiny

JOB = Path(__file__).parents[2] / "jobs" / "image.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("image")


@pytest.fixture(scope="module")
def sd15(folder):
    return str(save_tiny("sd15", folder / "sd15"))


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
        assert "trainedAlgorithmicMedia" in str(picture.info["xmp"])
        assert picture.size == (64, 64)


WRONG = {
    "no such model": (["--model", "sd9", "--prompt", "x"], "unknown model 'sd9'"),
    "gate at 0": (["--prompt", "x", "--gate_step", "0"], "gate_step=0"),
    "gate beyond": (["--prompt", "x", "--gate_step", "26"], "beyond the 25 steps"),
    "no prompt": (["--model", "sdxl"], "--prompt"),
    "no picture": (["--model", "svd", "--prompt", "x"], "--image"),
    "picture missing": (["--model", "svd", "--image", "/no/such.png"], "cannot be read: [Errno 2]"),
    "not a picture": (["--model", "svd", "--image", str(JOB)], "cannot be read as an image"),
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


def test_options_and_defaults_are_the_references():
    """Those of its main.py; what ours adds is left out by default."""
    parser = argparse.ArgumentParser()
    image.configure(parser)
    options = vars(parser.parse_args(["--saved_path", "out"]))
    ours_alone = {options.pop(name) for name in ("path", "height", "width")} | {options.pop("seed")}
    assert ours_alone == {None, 0}
    assert options == {
        "prompt": None,
        "image": None,
        "saved_path": "out",
        "model": "pixart",
        "gate_step": 10,
        "sp_interval": 5,
        "fi_interval": 1,
        "warm_up": 2,
        "inference_step": 25,
        "deepcache": False,
    }


def test_every_model_of_the_reference_is_known():
    names = "pixart sd_xl sd_2.1 sd_1.5 lcm_sdxl lcm_pixart"  # the help of version 0.1
    names += " pixart_alpha pixart_sigma sdxl lcm_sdxl lcm_pixart_alpha svd"  # of version 1.0
    for name in names.split():
        assert catalogue.entry(image.ALIASES.get(name, name))


# model: its tiny one, the reference's pipeline and loader, and what its main.py passes on.
SAME = {
    "pixart": ("pixart_alpha", "PixArtAlphaPipeline", "TgatePixArtAlphaLoader", {}),
    "pixart_sigma": ("pixart_sigma", "PixArtSigmaPipeline", "TgatePixArtSigmaLoader", {}),
    "sdxl": ("sdxl", "StableDiffusionXLPipeline", "TgateSDXLLoader", {}),
    "sdxl --deepcache": (
        "sdxl",
        "StableDiffusionXLPipeline",
        "TgateSDXLDeepCacheLoader",
        {"sp_interval": 1, "warm_up": 0},
    ),
    "lcm_sdxl": (
        "lcm_sdxl",
        "StableDiffusionXLPipeline",
        "TgateSDXLLoader",
        {"sp_interval": 1, "warm_up": 0, "lcm": True},
    ),
    "lcm_pixart": (
        "lcm_pixart_alpha",
        "PixArtAlphaPipeline",
        "TgatePixArtAlphaLoader",
        {"sp_interval": 1, "warm_up": 0, "lcm": True, "guidance_scale": 0.0},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", SAME)
def test_the_picture_equals_the_references(run, tmp_path, model):
    name, pipeline, loader, passed = SAME[model]
    path = str(save_tiny(name, tmp_path / name))
    more = ("--path", path, "--prompt", "a cat", "--saved_path", tmp_path)
    code, printed = run("--model", *model.split(), *more)
    assert code == 0, printed.err

    pipe = getattr(diffusers, pipeline).from_pretrained(path)
    if name == "sdxl":
        kind = diffusers.DPMSolverMultistepScheduler
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe = getattr(reference, loader)(pipe)
    settings = {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2}
    picture = pipe.tgate(
        "a cat",
        num_inference_steps=25,
        generator=torch.Generator().manual_seed(0),
        **settings | passed,
    ).images[0]
    with Image.open(tmp_path / "test.png") as ours:
        assert ours.tobytes() == picture.tobytes()


def test_a_picture_becomes_test_mp4(run, tmp_path):
    """25 frames, 7 a second, as the reference's."""
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "first.jpg")
    path = save_tiny("svd", tmp_path / "svd")
    options = ("--model", "svd", "--path", path, "--image", tmp_path / "first.jpg")
    small = ("--height", 64, "--width", 64, "--inference_step", 2, "--gate_step", 1)
    code, printed = run(*options, *small, "--saved_path", tmp_path)
    assert code == 0, printed.err
    with av.open(tmp_path / "test.mp4") as film:
        assert film.streams.video[0].average_rate == 7
        assert sum(1 for _ in film.decode(video=0)) == 25
