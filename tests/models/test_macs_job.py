import json

import pytest
import yaml

from tgate_batch.cli.main import run
from tgate_batch.errors import UserError
from tgate_batch.models.catalogue import save_tiny

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


def macs(*arguments):
    run(["macs", *map(str, arguments)])


def test_the_arms_of_a_config_are_counted_with_the_given_folder(config, capsys):
    macs(config, "--json", "--parts")
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


def test_the_table_names_every_arm(config, capsys):
    macs(config)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("baseline", "gate 2", "DeepCache interval 2"))


def test_a_config_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        macs(tmp_path / "none.yaml")


def test_every_arm_counted_is_a_line_and_the_output_is_json_alone(config, monkeypatch, capsys):
    monkeypatch.setattr("tgate_batch.execute.progress._SECONDS_BETWEEN_LINES", 0)
    macs(config, "--json")
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 3
    assert said.err.splitlines() == [
        "counting MACs: loading torch and diffusers ...",
        *(f"counting MACs: {count} of 3 arms" for count in (1, 2, 3)),
    ]


@pytest.mark.parametrize("columns", [80, 100, 120, 160])
def test_no_figure_of_the_table_is_cut(config, monkeypatch, capsys, columns):
    macs(config, "--json")
    rows = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("tgate_batch.report.terminal.width", lambda: columns)
    macs(config)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    for row in rows:
        assert any(f"{row['params_m']:.3f}" in line.split() for line in lines)
    for heading in ("settings", "with attention", "params (M)", "published", "error"):
        assert any(heading in line for line in lines)
