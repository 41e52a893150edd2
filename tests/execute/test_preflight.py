"""The pre-flight: all that can be refused is refused before the first image, and at once."""

import json
from pathlib import Path

import pytest
import yaml

from tgate_batch import config, workflow
from tgate_batch.cli.job import run_as_job
from tgate_batch.cli.main import run
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.output import layout
from tgate_batch.storage import Folder

GATED = {"baseline": {}, "tgate": {"gate_step": 2}}


@pytest.fixture
def here(settings):
    return settings | {"workers": {"executor": "local"}}


def problems(settings: dict) -> tuple[str, ...]:
    with pytest.raises(UserError) as told:
        workflow.dry_run(config.parse(settings))
    assert not Path(settings["output"]).exists()
    return told.value.problems


def with_scheduler(settings: dict, scheduler, arms=GATED) -> dict:
    return settings | {"sampling": settings["sampling"] | {"scheduler": scheduler}, "arms": arms}


def test_all_problems_are_told_together_one_line_each(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    broken = with_scheduler(here, "FlowMatchEulerDiscreteScheduler") | {
        "prompts": {"path": str(tmp_path / "none.csv")},
        "score": {
            "reference": str(tmp_path / "none.npz"),
            "extractor": "inception",
            "weights": {"lpips": str(tmp_path / "bad.pth")},
        },
        "engine": {"compile": True},
        "images": {"format": "gif"},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(broken))
    with pytest.raises(SystemExit) as left:
        run_as_job(lambda: run(["render", "--config", str(file)]))
    assert left.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for words in (
        ["images.format", "gif"],
        ["score.reference", "none.npz"],
        ["Inception weights are not at", "pt_inception-2015-12-05-6726825d.pth"],
        ["bad.pth", "cannot be read"],
        ["arms baseline, tgate with sd15", "FlowMatchEulerDiscreteScheduler", "init_noise_sigma"],
        ["engine.compile", "C compiler", "g++"],
        ["none.csv", "does not exist"],
    ):
        assert sum(all(word in line for word in words) for line in lines) == 1, words
    assert len(lines) == 7
    assert not Path(broken["output"]).exists()


def test_weights_that_are_of_something_else_are_refused_by_the_dry_run(here, tmp_path):
    (tmp_path / "lpips.pth").write_bytes(b"PK\x03\x04 cut off")
    (line,) = problems(here | {"score": {"weights": {"lpips": str(tmp_path / "lpips.pth")}}})
    assert "lpips.pth" in line


def test_an_extractor_without_its_weights_is_no_fault_where_there_is_no_reference(
    here, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert workflow.dry_run(config.parse(here | {"score": {"extractor": "inception"}})) == 0


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("FlowMatchEulerDiscreteScheduler", ["arms baseline, tgate", "init_noise_sigma"]),
        ({"class": "DDIMScheduler", "prediction_type": "v"}, ["arms baseline, tgate", "v"]),
        (
            {"class": "PNDMScheduler", "skip_prk_steps": False},
            ["arm tgate with sd15", "Runge-Kutta", "skip_prk_steps=True"],
        ),
        ("LCMScheduler", ["arm long with sd15", "LCMScheduler cannot render in 60 steps"]),
    ],
)
def test_a_scheduler_that_cannot_render_the_model_under_an_arm_is_refused(here, scheduler, words):
    arms = GATED | ({"long": {"steps": 60}} if scheduler == "LCMScheduler" else {})
    (line,) = problems(with_scheduler(here, scheduler, arms))
    for word in words:
        assert word in line


def test_an_arm_s_own_scheduler_is_tried_too(here):
    arms = GATED | {"flow": {"scheduler": "FlowMatchEulerDiscreteScheduler"}}
    (line,) = problems(here | {"arms": arms})
    assert line.startswith("arm flow with sd15: ")


@pytest.mark.parametrize(
    "scheduler",
    [
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
        "TCDScheduler",
        {"class": "PNDMScheduler", "skip_prk_steps": True},
        "own",
    ],
)
def test_schedulers_that_render_are_not_refused(here, scheduler):
    assert workflow.dry_run(config.parse(with_scheduler(here, scheduler))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "pixart_alpha", "sana", "wan21", "svd", "kolors"])
def test_a_family_s_own_scheduler_is_not_refused(name, tmp_path):
    from tgate_batch.models.resolve import resolve_model, resolve_sampling
    from tgate_batch.models.schedulers import refusals

    folder = catalogue.save_tiny(name, tmp_path / name)
    model = config.Model(name="mine", path=str(folder))
    sampling = resolve_sampling(model, config.Sampling())
    assert list(refusals(model, resolve_model(model), sampling, config.parse(
        {"models": ["demo"], "prompts": {"path": "demo"}, "arms": GATED, "output": "out"}
    ).arms)) == []  # fmt: skip


def test_a_worker_refuses_to_compile_without_a_compiler_before_any_image_fails(
    tiny, monkeypatch, tmp_path
):
    from tgate_batch.models import engine
    from tgate_batch.models.checkpoint import load_pipeline
    from tgate_batch.models.resolve import resolve_sampling

    model = config.Model(name="sd15", path=tiny)
    pipeline = load_pipeline(model, resolve_sampling(model, config.Sampling()), "cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"engine\.compile: torch.compile needs a C compiler"):
        engine.prepare(pipeline, config.Engine(compile=True))


def test_a_corrected_config_goes_on_where_a_model_did_not_load(here, tiny, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    first = here | {"models": [{"name": "sd15", "path": str(folder)}]}
    with pytest.raises(UserError, match="cannot be loaded"):
        workflow.render(config.parse(first))
    file.write_bytes(whole)
    assert workflow.render(config.parse(first)) == workflow.DONE


def test_the_report_names_each_figure_that_was_asked_for_and_is_absent(here, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert workflow.render(config.parse(here)) == workflow.DONE
    asked = here | {"score": {"reference": "drawn", "extractor": "inception"}}
    assert workflow.score(config.parse(asked)) == 2
    folder = Folder(here["output"])
    report = json.loads(folder.read(layout.REPORT_JSON))
    for arm in report["arms"]:
        assert "Inception weights are not at" in arm["withheld"]["distances by inception"]
    page = folder.read(layout.REPORT_PAGE).decode()
    assert "Not shown: distances by inception" in page
