"""A hub id under any name: small files are fetched to check a run, weights to draw it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub


@pytest.fixture
def hub(tiny):
    served = Hub("some/finetune", Path(tiny))
    yield served
    served.close()


def job(hub: Hub, tmp_path: Path, captions: Path, model: dict, *options: str):
    """``tgate-batch render`` of a model at the hub, with a cache of its own."""
    run = {
        "models": [{"name": "mine"} | model],
        "prompts": {"path": str(captions), "limit": 2},
        "sampling": {"steps": 2},
        "arms": {"baseline": {}},
        "workers": {"executor": "local"},
        "score": {"reference": None},
        "output": str(tmp_path / "out"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
    }
    command = ["-m", "tgate_batch", "render", "--config", str(tmp_path / "run.yaml"), *options]
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_hub_id_is_checked_by_its_small_files_and_drawn_with_its_weights(hub, tmp_path, captions):
    model = {"path": "some/finetune", "revision": COMMIT}
    tried = job(hub, tmp_path, captions, model, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "PNDMScheduler (the checkpoint's own)" in " ".join(tried.stdout.split())
    assert "G MACs per image" in tried.stdout
    assert hub.asked
    assert not [name for name in hub.asked if name.endswith(".safetensors")]
    drawn = job(hub, tmp_path, captions, model)
    assert drawn.returncode == 0, drawn.stderr
    assert "unet/diffusion_pytorch_model.safetensors" in hub.asked
    made_of = json.loads((tmp_path / "out" / "made_of.json").read_text())["folders"]
    assert made_of["images/mine/baseline"]["revision"] == COMMIT
    assert len(made_of["images/mine/baseline"]["checkpoint"]) == 64


def test_an_id_that_the_hub_does_not_have_is_one_line(hub, tmp_path, captions):
    refused = job(hub, tmp_path, captions, {"path": "some/other"}, "--dry-run")
    assert refused.returncode == 2
    assert "some/other is not on this machine, and the hub does not give it (status 404)" in (
        " ".join(refused.stderr.split())
    )
