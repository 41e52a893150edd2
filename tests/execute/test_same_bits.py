"""Whole runs give the same pictures, bit for bit, however their prompts are cut and shuffled.

Each run is a job of its own on a tiny model. Ids stand beside the prompts, and make their seeds.
"""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tgate_batch import config, workflow
from tgate_batch.execute.rerender import rerender
from tgate_batch.output import history, layout
from tgate_batch.output.run import load_run
from tgate_batch.storage import Folder

ARMS = {
    "baseline": {},
    "gate": {"gate_step": 2},
    "intervals": {"gate_step": 3, "sp_interval": 2, "fi_interval": 2, "warm_up": 1},
    "deepcache": {"deepcache": {"interval": 2, "branch": 0}},
    "both": {"gate_step": 2, "deepcache": {"interval": 2, "branch": 0}},
    "fewer": {"steps": 3},
    "euler": {"scheduler": "EulerDiscreteScheduler"},
    "ancestral": {"scheduler": "EulerAncestralDiscreteScheduler"},
    "lcm": {"scheduler": "LCMScheduler"},
    "guidance": {"guidance_from": 1, "guidance_until": 3},
}
PICTURES = 200
ROOT = Path(__file__).parents[2]


def settings(model: str, output: Path, rows: list[str], **changes) -> dict:
    """A run of these lines of a CSV."""
    captions = output.with_suffix(".csv")
    captions.write_text("id,caption\n" + "\n".join(rows) + "\n", encoding="utf-8")
    whole = {
        "models": [{"name": "sd15", "path": model}],
        "prompts": {"path": str(captions), "shard_size": 64},
        "sampling": {"steps": 4, "height": 32, "width": 32, "batch_size": 8},
        "arms": ARMS,
        "images": {"format": "png", "mark": False},
        "workers": {"executor": "local"},
        "score": {"reference": None},
        "output": str(output),
    }
    return {
        key: {**whole[key], **changes.get(key, {})} if isinstance(whole[key], dict) else whole[key]
        for key in whole
    }


def captions(count: int) -> list[str]:
    words = random.Random(0)
    return [
        f"c{i},{' '.join(words.choices(['red', 'small', 'old', 'far'], k=i % 6 + 1))} {i}"
        for i in range(count)
    ]


def hashes(output: Path) -> dict[tuple[str, str], str]:
    """(arm, prompt id) -> hash of the file, of every picture of an output."""
    found = {}
    for file in output.glob(layout.IMAGE_FILES):
        for row in pq.read_table(file).to_pylist():
            assert row["status"] == "ok", row["error"]
            key = row["arm"], row["prompt_id"]
            found[key] = hashlib.sha256(row["image"]["bytes"]).hexdigest()
    return found


def drawn(*args, **changes) -> dict[tuple[str, str], str]:
    run = config.parse(settings(*args, **changes))
    assert workflow.render(run) == workflow.DONE
    return hashes(Path(run.output))


def killed_and_resumed(model: str, output: Path, rows: list[str]) -> dict[tuple[str, str], str]:
    """Of a run whose driver dies when a third of the files stand."""
    file = output.with_suffix(".yaml")
    made = settings(model, output, rows, prompts={"shard_size": 40})
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    command = [sys.executable, "jobs/render.py", "--config", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as driver:
        while driver.poll() is None and len(list(output.glob(layout.IMAGE_FILES))) < 2 * len(ARMS):
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    assert len(hashes(output)) < len(ARMS) * len(rows)
    assert workflow.render(config.load(file)) == workflow.DONE
    return hashes(output)


@pytest.mark.slow
def test_two_hundred_pictures_of_every_arm_are_the_same_in_every_run(tiny, tmp_path):
    rows = captions(PICTURES)
    whole = drawn(tiny, tmp_path / "whole", rows)
    assert len(whole) == PICTURES * len(ARMS)
    for arm in ARMS:  # pictures differ from each other, and arms from the baseline
        mine = [digest for (name, _), digest in whole.items() if name == arm]
        assert len(set(mine)) == PICTURES
        assert arm == "baseline" or whole[arm, "c0"] != whole["baseline", "c0"]

    shuffled = random.Random(1).sample(rows, PICTURES)
    assert drawn(tiny, tmp_path / "shuffled", shuffled) == whole
    assert drawn(tiny, tmp_path / "shards", rows, prompts={"shard_size": 13}) == whole
    assert killed_and_resumed(tiny, tmp_path / "killed", rows) == whole
    workers = {"executor": "ray", "min": 2, "max": 2}
    assert drawn(tiny, tmp_path / "two", rows, workers=workers) == whole

    others = [*shuffled[:37], *(f"o{i},another picture {i}" for i in range(20))]
    among = drawn(tiny, tmp_path / "among", random.Random(2).sample(others, 57))
    assert {key: among[key] for key in whole if key in among} == {
        key: whole[key] for key in whole if key in among
    }
    for row in shuffled[:3]:
        alone = drawn(tiny, tmp_path / row.split(",")[0], [row])
        assert alone == {key: whole[key] for key in alone}

    run = load_run(str(tmp_path / "two"))
    assert [entry["invariant"] for entry in history.read(Folder(run.config.output))] == [True]
    again = list(rerender(run, 2))
    assert [(one.same_bytes, one.exact) for one in again] == [(True, True)] * 2 * len(ARMS)
