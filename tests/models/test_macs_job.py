import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from tgate_batch.errors import UserError
from tgate_batch.models.catalogue import save_tiny

ROOT = Path(__file__).parents[2]
KEYS = {
    "model",
    "arm",
    "steps",
    "plan",
    "macs_t",
    "macs_with_attention_t",
    "params_m",
    "published_macs_t",
    "relative_error",
}


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location("macs_job", ROOT / "jobs" / "macs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    save_tiny("sd15", tmp_path / "tiny")
    run = {
        "models": [{"name": "sd15", "path": str(tmp_path / "tiny")}],
        "prompts": {"path": "prompts.csv"},
        "sampling": {"steps": 4, "height": 64, "width": 64, "scheduler": "DDIMScheduler"},
        "arms": {
            "baseline": {},
            "tgate": {"gate_step": 2},
            "cached": {"deepcache": {"interval": 2}},
        },
        "output": "out",
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run, sort_keys=False))
    return file


def run(job, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["macs.py", *map(str, arguments)])
    job.job()


def test_the_arms_of_a_config_are_counted_with_the_given_folder(job, config, monkeypatch, capsys):
    run(job, monkeypatch, config, "--json", "--parts")
    baseline, gated, cached = json.loads(capsys.readouterr().out)
    assert set(baseline) >= KEYS
    assert [row["arm"] for row in (baseline, gated, cached)] == ["baseline", "tgate", "cached"]
    assert gated["plan"] == {"gate_step": 2, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    # half of the steps run one branch of two, without cross-attention
    assert gated["macs_t"] < 0.75 * baseline["macs_t"]
    assert cached["macs_t"] < baseline["macs_t"]
    assert gated["params_m"] < baseline["params_m"] == cached["params_m"]
    assert baseline["published_macs_t"] is None
    assert set(baseline["parts"]) == {"text_encoder", "vae"}


def test_the_table_names_every_arm(job, config, monkeypatch, capsys):
    run(job, monkeypatch, config)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("baseline", "gate 2", "DeepCache interval 2"))


def test_a_config_that_cannot_be_read_says_so(job, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be read"):
        run(job, monkeypatch, tmp_path / "none.yaml")
