"""The code in the documents runs, and says what they say."""

import json
import re
from pathlib import Path

import pytest

from tgate_batch import config, demo, workflow

ROOT = Path(__file__).parents[1]
SMALL = (
    "workers.executor=local",
    "prompts.limit=2",
    "prompts.shard_size=2",
    "sampling.steps=3",
    "arms={baseline: {}}",
    "score.reference=null",
)


def blocks(document: str) -> list[str]:
    """The Python code of a document, block after block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """The embedded model's baseline on two prompts."""
    folder = tmp_path_factory.mktemp("docs") / "out" / "demo"
    places = {"prompts.path": str(demo.PROMPTS), "output": str(folder)}
    settings = [*SMALL, *(f"{key}={json.dumps(place)}" for key, place in places.items())]
    run = config.load(ROOT / "configs" / "demo.yaml", settings)
    assert workflow.render(run) == workflow.DONE
    return folder


def test_stored_row_is_drawn_again_in_plain_diffusers_as_the_document_says(
    output, monkeypatch, capsys
):
    monkeypatch.chdir(output.parents[1])
    alone, as_batch = blocks("docs/reproduce.md")
    names: dict = {}
    exec(alone, names)
    assert names["levels"] <= 1
    exec(as_batch, names)
    assert names["levels"] == 0
    assert "0 of 255 levels apart" in capsys.readouterr().out
