"""The jobs as a person runs them: whole commands, their exit codes, and what they leave on disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.output import history, layout
from tgate_batch.storage import Folder

ROOT = Path(__file__).parents[1]
COCO = ROOT.parent / "shared" / "data" / "coco2014_val_30k_captions.csv"
HOSTILE = '<script>alert(1)</script> & "quotes"'


def job(name, *arguments, timeout=280):
    return subprocess.run(
        [sys.executable, f"jobs/{name}.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def written(settings, tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def pictures(output, arm) -> dict[str, bytes]:
    rows = pd.read_parquet(Path(output) / layout.images("sd15", arm))
    return {row.prompt_id: row.image["bytes"] for row in rows.itertuples()}


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run of 6 prompts, one of them hostile to paths and to HTML; (folder, stdout).

    Its config is ``run.yaml`` beside the folder.
    """
    here = tmp_path_factory.mktemp("finished")
    captions = here / "captions.csv"
    rows = [f"c{i},a picture of number {i}" for i in range(5)]
    hostile = HOSTILE.replace('"', '""')
    captions.write_text("id,caption\n" + "\n".join(rows) + f'\n../../x,"{hostile}"\n')
    settings = {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(captions), "shard_size": 1},
        "sampling": {"steps": 4, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 2}},
        "workers": {"max": 1},
        "score": {"reference": None},
        "cost": {"usd_per_cpu_hour": 3.6},
        "output": str(here / "out"),
    }
    done = job("render", "--config", written(settings, here))
    assert done.returncode == 0, done.stderr
    return here / "out", done.stdout


def test_last_lines_show_what_was_saved_and_where_the_report_is(finished):
    folder, said = finished
    lines = said.strip().splitlines()
    assert lines[-1] == f"report: {folder / 'report' / 'index.html'}"
    assert lines[-2] == "12 images, 0 errors"
    assert lines[-3].startswith("tgate renders ")
    assert any("MACs saved" in line for line in lines)


def test_report_has_an_entry_an_arm_with_stable_keys(finished):
    report = json.loads((finished[0] / "report" / "report.json").read_text())
    assert [(arm["model"], arm["arm"]) for arm in report["arms"]] == [
        ("sd15", "baseline"),
        ("sd15", "tgate"),
    ]
    baseline, gated = report["arms"]
    assert baseline["speedup"] == 1
    assert baseline["macs_saved"] == 0
    assert gated["images"] == 6
    assert gated["errors"] == 0
    assert gated["macs_per_image"] < baseline["macs_per_image"]
    assert gated["macs_per_image"] < gated["macs_per_image_with_attention"]
    assert gated["paired"]["psnr"] > 0
    assert gated["fid"] is None
    rate = gated["images_per_second_per_worker"]
    assert gated["usd_per_1000_images"] == pytest.approx(1000 / rate * 3.6 / 3600)


def test_arms_share_the_bill_of_one_worker_from_birth_to_report(finished):
    report = json.loads((finished[0] / "report" / "report.json").read_text())
    bill, (entry,) = report["run"]["bill"], history.read(Folder(str(finished[0])))
    assert bill["usd"] == pytest.approx(bill["wall_seconds"] * 3.6 / 3600)
    assert bill["wall_seconds"] <= entry["seconds"]
    shares = [arm["usd_per_1000_images_billed"] / 1000 * 6 for arm in report["arms"]]
    assert sum(shares) == pytest.approx(bill["usd"])
    for arm in report["arms"]:
        assert arm["usd_per_1000_images_billed"] > arm["usd_per_1000_images"]


def test_prompts_are_escaped_on_the_page(finished):
    page = (finished[0] / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # its own
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_prompt_id_never_becomes_a_path(finished):
    assert not list(finished[0].parent.rglob("x"))
    assert "../../x" in set(pd.read_parquet(finished[0] / layout.images("sd15", "tgate")).prompt_id)


def test_history_says_who_made_it(finished):
    (entry,) = history.read(Folder(str(finished[0])))
    assert entry["command"][0] == "jobs/render.py"
    assert entry["versions"]["diffusers"]
    assert (entry["device"], entry["exit_code"]) == ("CPU", 0)
    assert entry["host"]
    run = json.loads((finished[0] / layout.REPORT_JSON).read_text())["run"]
    assert run["versions"] == entry["versions"]
    assert [maker["files"] for maker in run["made_by"]] == [12]


def test_files_carry_macs_and_settings(finished):
    file = next((finished[0] / "images").rglob("tgate/*.parquet"))
    metadata = pq.read_metadata(file).metadata
    assert float(metadata[b"macs_per_image"]) > 0
    assert json.loads(metadata[b"settings"])["gate_step"] == 2


def test_nothing_but_finished_files_is_left(finished):
    names = {path.name for path in finished[0].rglob("*") if path.is_file()}
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_killed_run_resumes_at_the_first_missing_shard(finished, tmp_path, executor):
    whole, cut = finished[0], tmp_path / "cut"
    file = whole.parent / "run.yaml"
    command = [sys.executable, "jobs/render.py", "--config", str(file), "--output", str(cut)]
    command += ["--set", f"workers.executor={executor}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as driver:
        while driver.poll() is None and len(list(cut.rglob("shard-*.parquet"))) < 3:
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in cut.glob(layout.IMAGE_FILES)}
    assert 3 <= len(before) < 12
    for path in before:
        assert pq.read_metadata(path).num_rows == 1
    resumed = config.load(file, [f"output={cut}", "workers.executor=local"])
    assert workflow.render(resumed) == 0
    killed, whole_one = history.read(Folder(str(cut)))
    assert (killed["killed"], whole_one["killed"], whole_one["workers"]) == (True, False, 1)
    assert killed["seconds"] > 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    for arm in ("baseline", "tgate"):
        assert pictures(cut, arm) == pictures(whole, arm)
    assert not list(cut.rglob(".tmp-*"))


TOY = """
import time
import numpy as np

class Toy:
    name, dimensions, label, note, sha256 = "toy", 3, "FD-toy", None, "0"

    def __init__(self, path=None, device="cpu"):
        pass

    def __call__(self, images):
        time.sleep(0.1)
        return np.array([np.asarray(image).mean(axis=(0, 1)) for image in images], np.float32)
"""


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_killed_job_of_a_reference_goes_on_and_gives_the_same_file(tmp_path, monkeypatch, executor):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "toy_extractor.py").write_text(TOY)
    (tmp_path / "pictures").mkdir()
    for number in range(800):
        colour = (number % 256, number // 256, 7)
        picture = Image.new("RGB", (4, 4), colour)
        picture.putpixel((0, 0), (255, 255, 255))
        picture.save(tmp_path / "pictures" / f"{number}.png")
    settings = {
        "models": ["demo"],
        "prompts": {"path": "captions.txt"},
        "arms": {"baseline": {}},
        "workers": {"executor": "local"},
        "score": {"extractor": "toy_extractor:Toy", "reference": str(tmp_path / "whole.npz")},
        "output": str(tmp_path / "out"),
    }
    options = ["--config", str(written(settings, tmp_path)), "--from", str(tmp_path / "pictures")]
    done = job("reference", *options)
    assert done.returncode == 0, done.stderr
    whole = tmp_path / "whole.npz"
    assert done.stdout.splitlines()[-2:] == [
        "reference: 800 of 800 images",
        f"{whole}: toy features of 800 images",
    ]
    cut = tmp_path / "cut.npz"
    options += ["--to", str(cut), "--set", f"workers.executor={executor}"]
    with subprocess.Popen(
        [sys.executable, "jobs/reference.py", *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        while driver.poll() is None and not list(tmp_path.rglob("part-*.parquet")):
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    before = len(list(tmp_path.rglob("part-*.parquet")))
    assert 1 <= before < 4
    assert not cut.exists()
    monkeypatch.syspath_prepend(tmp_path)
    resumed = config.load(tmp_path / "run.yaml", [f"score.reference={cut}"])
    assert workflow.reference(resumed, str(tmp_path / "pictures")) == 0
    assert cut.read_bytes() == whole.read_bytes()
    assert not Path(layout.parts(str(cut))).exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampling.step=3", "did you mean 'steps'?"),
        ("sampling.steps=many", "sampling.steps"),
        ("models=[sdlx]", "did you mean 'sdxl'?"),
        ("arms.tgate.gate_step=0", "gate_step=0"),
        ("arms.tgate.gate_step=9", "beyond the 4 steps"),
        ("prompts.path=none.csv", "does not exist"),
        ("prompts.text_column=txt", "no column 'txt'"),
        ("output=/proc/none/out", "cannot be written"),
        ('arms={"../x": {}}', "cannot name a folder"),
        ("score.reference=none.npz", "none.npz"),
        ("images.format=gif", "unknown format 'gif'; one of: webp, png, jpeg"),
        ("workers.executor=slurm", "unknown executor 'slurm'; one of: ray, local"),
        ("thresholds={fdi: {max: 1}}", "fdi"),
        ("score.weights={clop: x}", "clop"),
        ("gates={fid: {max: 1}}", "rename it to 'thresholds'"),
        ("plugins=[no_such_module]", "no_such_module cannot be imported"),
    ],
)
def test_bad_input_is_one_clear_line_with_code_2_and_nothing_written(
    settings, tmp_path, monkeypatch, capsys, override, said
):
    code, _, error = in_process(
        ["--config", written(settings, tmp_path), "--set", override], monkeypatch, capsys
    )
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not Path(settings["output"]).exists()


def test_missing_config_is_told_with_code_2():
    done = job("render", "--config", "none.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    fix = "Fix: give a YAML file or a bundled config: "
    assert line.startswith(f"error: config none.yaml does not exist. {fix}")
    assert "demo" in line


def in_process(arguments, monkeypatch, capsys) -> tuple[int, str, str]:
    """jobs/render.py in this process, which saves the imports: its code, output and errors."""
    import runpy

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["render.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "jobs" / "render.py"), run_name="__main__")
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_dry_run_says_what_would_be_done_and_writes_nothing(
    settings, tmp_path, monkeypatch, capsys
):
    file = written(settings, tmp_path)
    code, said, error = in_process(["--config", file, "--dry-run"], monkeypatch, capsys)
    assert code == 0, error
    assert "10 prompts in 3 shards" in said
    assert "sd15 tgate: 10 images" in said
    assert "estimate:" in said
    assert "no price given (cost.usd_per_cpu_hour)" in said
    assert not Path(settings["output"]).exists()


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_file(), reason="the COCO captions are not on this machine")
def test_real_captions_keep_their_ids(settings, tmp_path):
    settings = {**settings, "prompts": {"path": str(COCO), "limit": 300}}
    done = job("render", "--config", written(settings, tmp_path))
    assert done.returncode == 0, done.stderr
    wanted = pd.read_csv(COCO, nrows=300, dtype=str).image_id
    for arm in ("baseline", "tgate"):
        assert set(pictures(settings["output"], arm)) == set(wanted)


@pytest.mark.slow
def test_submitted_job_gives_what_the_plain_command_gives(settings, tmp_path):
    file = written({**settings, "score": {"reference": None}}, tmp_path)
    plain, submitted = tmp_path / "plain", tmp_path / "submitted"
    assert job("render", "--config", file, "--output", plain).returncode == 0
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def ray(*words):
        return subprocess.run(
            [tools / "ray", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    started = ray("start", "--head", "--num-cpus=2", "--dashboard-host=127.0.0.1")
    assert started.returncode == 0, started.stderr
    try:
        for _ in range(5):  # on a busy machine the head's agent may not stand yet
            done = ray(
                *("job", "submit", "--working-dir", ".", "--"),
                *("python", "jobs/render.py", "--config", str(file), "--output", str(submitted)),
            )
            if "No available agent" not in done.stderr:
                break
            time.sleep(5)
    finally:
        ray("stop", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    for arm in ("baseline", "tgate"):
        assert pictures(plain, arm) == pictures(submitted, arm)
