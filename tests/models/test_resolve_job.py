"""Checkpoints of one's own through the whole job, beside what plain diffusers draws of them."""

import io
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pandas
import peft
import pytest
import torch
from original_layout import save_as_one
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from tgate_batch import workflow
from tgate_batch.cli.main import run
from tgate_batch.models import catalogue

# Ten lines, with `models` the eleventh.
SHORT = """
prompts: {path: captions.csv, limit: 2}
sampling: {steps: 3, batch_size: 2}
arms:
  baseline: {}
  tgate: {gate_step: 1}
workers: {executor: local}
score: {reference: null}
output: out
"""
FAST = ["sd15", "pixart_sigma"]
SLOW = ["sd21", "sdxl", "lcm_sdxl", "pixart_alpha", "lcm_pixart_alpha", "kolors", "playground25"]
SLOW += ["ssd_1b", "vega"]


@pytest.fixture
def rendered(tmp_path, captions, monkeypatch):
    """``rendered(models, *overrides)`` runs the config and returns its report and its folder."""
    monkeypatch.chdir(tmp_path)

    def go(model: dict, *overrides: str) -> tuple[dict, Path]:
        text = f"models: [{json.dumps({'name': 'mine'} | model)}]{SHORT}"
        assert len(text.splitlines()) <= 12
        Path("run.yaml").write_text(text)
        sets = [word for override in overrides for word in ("--set", override)]
        run(["render", "--config", "run.yaml", *sets])
        return json.loads(Path("out/report/report.json").read_text()), Path("out")

    return go


def stored(folder: Path, arm: str = "baseline") -> tuple[pandas.DataFrame, np.ndarray]:
    """The rows of an arm and their pictures, uint8 [n, height, width, 3]."""
    rows = pandas.read_parquet(folder / "images" / "mine" / arm)
    pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in rows.image]
    return rows, np.stack(pictures)


def plain(pipe, rows: pandas.DataFrame, **call) -> np.ndarray:
    """What a pipeline draws of stored rows, as one batch in the engine's memory layout."""
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in rows.seed]
    drawn = pipe(list(rows.prompt), generator=generators, num_inference_steps=3, **call).images
    return np.stack([np.asarray(picture) for picture in drawn])


def sdxl(folder) -> diffusers.StableDiffusionXLPipeline:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A tiny SDXL that was saved with Euler."""
    where = catalogue.save_tiny("sdxl", tmp_path_factory.mktemp("sdxl"))
    index = json.loads((where / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    return str(where)


def counted(report: dict) -> list[int]:
    """MACs of the two arms: the gated one has fewer."""
    first, second = (arm["macs_per_image"] for arm in report["arms"])
    assert first > second > 0
    return [first, second]


def test_a_folder_saved_with_euler_is_drawn_with_euler_bit_for_bit(rendered, folder, capsys):
    report, output = rendered({"path": folder})
    rows, pictures = stored(output)
    pipe = sdxl(folder)
    assert (plain(pipe, rows, guidance_scale=7.5) == pictures).all()
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert (plain(pipe, rows, guidance_scale=7.5) != pictures).any()
    counted(report)
    used = "EulerDiscreteScheduler (the checkpoint's own)"
    assert f"mine: a StableDiffusionXLPipeline, settings like sdxl; 3 steps of {used}" in (
        " ".join(capsys.readouterr().out.split())
    )
    for said in (report["run"], json.loads((output / "run.json").read_text())):
        assert said["models"]["mine"]["scheduler"] == used
    assert "scheduler of mine" in (output / "report" / "index.html").read_text()
    assert f"3 steps of {used}, guidance 7.5, 64 x 64 pixels" in (output / "README.md").read_text()
    assert workflow.verify(str(output)) == 0


def test_a_scheduler_with_arguments_draws_as_it_does_in_diffusers(rendered, folder):
    euler = {"class": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    _, output = rendered({"path": folder}, f"sampling.scheduler={json.dumps(euler)}")
    rows, pictures = stored(output)
    pipe = sdxl(folder)
    assert (plain(pipe, rows, guidance_scale=7.5) != pictures).any()
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing"
    )
    assert (plain(pipe, rows, guidance_scale=7.5) == pictures).all()
    made_of = json.loads((output / "made_of.json").read_text())["folders"]["images/mine/baseline"]
    assert made_of["sampling.scheduler.timestep_spacing"] == "trailing"
    again, _ = rendered({"path": folder, "scheduler": euler})  # the same: nothing is drawn
    assert again["run"]["models"]["mine"]["scheduler"] == (
        "EulerDiscreteScheduler with timestep_spacing trailing"
    )


def adapted(folder: str, seed: int) -> diffusers.StableDiffusionXLPipeline:
    """A pipeline whose U-Net has an adapter of peft with random weights."""
    pipe = sdxl(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        names = ["to_q", "to_k", "to_v", "to_out.0"]
        settings = LoraConfig(r=2, lora_alpha=4, target_modules=names, init_lora_weights=False)
        pipe.unet.add_adapter(settings)
    return pipe


def save_lora(folder: str, file: Path, seed: int = 0) -> Path:
    layers = get_peft_model_state_dict(adapted(folder, seed).unet)
    diffusers.StableDiffusionXLPipeline.save_lora_weights(
        file.parent, unet_lora_layers=layers, weight_name=file.name
    )
    return file


def test_loras_change_pictures_as_plain_diffusers_does_and_macs_not_at_all(
    rendered, folder, tmp_path
):
    report, output = rendered({"path": folder})
    without, macs = stored(output)[1], counted(report)
    shutil.rmtree(output)
    save_lora(folder, tmp_path / "loras" / "first.safetensors")
    save_lora(folder, tmp_path / "second.safetensors", seed=1)
    loras = [
        {"path": "loras", "scale": 0.6},
        {"path": str(tmp_path / "second.safetensors"), "scale": -0.3},
    ]
    report, output = rendered({"path": folder, "loras": loras})
    rows, pictures = stored(output)
    assert counted(report) == macs
    pipe = sdxl(folder)
    pipe.load_lora_weights("loras", weight_name="first.safetensors", adapter_name="a")
    pipe.load_lora_weights(".", weight_name="second.safetensors", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.6, -0.3])
    beside = plain(pipe, rows, guidance_scale=7.5)
    assert np.abs(beside.astype(int) - pictures).max() <= 1  # another order of the same sums
    pipe.fuse_lora()
    assert (plain(pipe, rows, guidance_scale=7.5) == pictures).all()
    assert np.abs(without.astype(int) - pictures).max() > 20
    said = json.loads((output / "made_of.json").read_text())["folders"]["images/mine/baseline"]
    assert [said["loras.0.scale"], said["loras.1.scale"]] == [0.6, -0.3]


def test_what_pefts_own_save_writes_is_merged_as_peft_does(rendered, folder, tmp_path):
    names = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe = sdxl(folder)
    peft.get_peft_model(pipe.unet, names).save_pretrained(tmp_path / "adapter")
    _, output = rendered({"path": folder, "loras": [{"path": "adapter"}]})
    rows, pictures = stored(output)
    pipe = sdxl(folder)
    adapter = peft.PeftModel.from_pretrained(pipe.unet, tmp_path / "adapter")
    pipe.unet = adapter.merge_and_unload()
    assert (plain(pipe, rows, guidance_scale=7.5) == pictures).all()


def test_a_single_file_is_drawn_as_the_folder_that_it_was_made_of(rendered, tiny, tmp_path):
    save_as_one(Path(tiny), tmp_path / "one.safetensors")
    bare = shutil.copytree(tiny, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    report, output = rendered({"path": "one.safetensors", "config": str(bare)})
    rows, pictures = stored(output)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny)
    assert (plain(pipe, rows) == pictures).all()
    counted(report)
    assert report["run"]["models"]["mine"]["like"] == "sd15"


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_a_tiny_model_of_each_family_is_drawn_under_any_name(rendered, name, tmp_path):
    path = str(catalogue.save_tiny(name, tmp_path / "model"))
    report, output = rendered({"path": path}, "sampling.height=64", "sampling.width=64")
    assert [(arm["images"], arm["errors"]) for arm in report["arms"]] == [(2, 0), (2, 0)]
    counted(report)
    assert stored(output)[1].std() > 1
    assert workflow.verify(str(output)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gated"), [("sana", True), ("wan21", True), ("svd", True)])
def test_larger_ones_too(rendered, name, gated, tmp_path):
    path = str(catalogue.save_tiny(name, tmp_path / "model"))
    overrides = ["sampling.height=64", "sampling.width=64", "sampling.steps=2"]
    if not gated:
        overrides.append("arms={baseline: {}}")
    if name == "svd":
        Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
        Path(tmp_path / "pictures.csv").write_text(
            f"id,caption,image\n1,a,{tmp_path}/red.png\n2,b,{tmp_path}/red.png\n"
        )
        overrides += ["prompts.path=pictures.csv", "prompts.image_column=image"]
    report, _ = rendered({"path": path}, *overrides)
    assert all((arm["images"], arm["errors"]) == (2, 0) for arm in report["arms"])
    assert all(arm["macs_per_image"] > 0 for arm in report["arms"])
