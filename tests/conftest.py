"""What tests share: the tiny Stable Diffusion of random weights, and a config that renders it."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_ADDRESS"] = "local"  # else a Ray that another test has started is joined
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  else other tests starve Ray's workers
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The folder of a tiny random Stable Diffusion 1.5."""
    from tgate_batch.models.catalogue import save_tiny

    return str(save_tiny("sd15", tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def torch_home(tmp_path_factory) -> str:
    """A TORCH_HOME with random weights where pytorch-fid keeps its Inception's."""
    from benchmarks.statistics import write_random_inception
    from tgate_batch.metrics.features import INCEPTION_FILE

    home = tmp_path_factory.mktemp("torch")
    weights = home / "hub" / "checkpoints" / INCEPTION_FILE
    weights.parent.mkdir(parents=True)
    write_random_inception(weights)
    return str(home)


@pytest.fixture
def one_thread():
    """A CPU worker's number of threads: with several, equal rows may come out unequal."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions(tmp_path) -> Path:
    """Ten captions with ids c0 to c9."""
    lines = [f"c{number},a picture of number {number}" for number in range(10)]
    file = tmp_path / "captions.csv"
    file.write_text("id,caption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def settings(tiny, captions, tmp_path) -> dict:
    """A run of 10 prompts in 3 shards with two arms, as plain data."""
    return {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(captions), "shard_size": 4},
        "sampling": {
            "steps": 4,
            "guidance_scale": 4.0,
            "height": 32,
            "width": 32,
            "batch_size": 2,
            "scheduler": "DDIMScheduler",
        },
        "arms": {"baseline": {}, "tgate": {"gate_step": 2}},
        "output": str(tmp_path / "out"),
    }
