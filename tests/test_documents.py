"""What the documents tell a reader to type does what they say.

Every fenced block of every page is run here, in the page's order and in one folder, or stands below
with the reason why it is not. Commands in the text are read by the parsers of the command line.
"""

import argparse
import contextlib
import fnmatch
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.command import BENCHMARKS, find_benchmark, option_parser
from tgate_batch import config
from tgate_batch.cli.main import COMMANDS, run

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(file.relative_to(ROOT))
    for place in ("*.md", "docs/**/*.md", "docker/*.md", "tgate_batch/demo/*.md")
    for file in ROOT.glob(place)
    if file.name != "CHANGELOG.md"  # it names what once was
)

NOT_RUN = {  # a snippet's name, * for anything -> why
    "make demo": "installs packages first; what it then runs, README has as a command of its own",
    "make test": "it is what runs this",
    "pip install .": "changes the environment; tests/test_wheel.py installs the wheel elsewhere",
    "tgate-batch render --config run.yaml": "SDXL's weights and a GPU; tests/test_configs.py draws "
    "every arm of every config with a tiny model",
    "ray job submit *": "needs a cluster",
    "docker *": "no Docker here; tests/docker/ holds its files against their schemas",
    "kubectl *": "no Kubernetes here; tests/docker/ holds its files against their schemas",
    "python -m tgate_batch.demo.training.train *": "an hour of training",
    "tgate-batch render --config plans_demo *": "many images; tests/render/ renders each kind",
    "mine: a StableDiffusionXLPipeline, *": "a run with a checkpoint of one's own, as "
    "tests/models/test_resolve_job.py draws with one",
    "<output>/README.md *": "names, not code; tests/output/test_layout.py has them",
}
SMALLER = {  # a command -> what is added to it, so that it takes seconds
    "tgate-batch render --config demo": "--set prompts.limit=2 --set workers.max=1",
}
SLOW = {  # more than a few seconds: run by `make test-all`
    "tgate-batch render --config demo",
    "tgate-batch render --config run.yaml --dry-run",
    'tgate-batch find-plan --config demo --output out/plan --lose-at-most "prompt_accuracy 0.02" '
    "--dry-run",
    "tgate-batch verify out/demo --again 1",
    "import datasets, duckdb, pandas, polars, ray.data",
}
PARTS = ("docs/models.md",)  # pages that show a part of a config; any other shows whole ones
WHOLE = {  # what a config needs beside such a part
    "models": ["demo"],
    "prompts": {"path": "demo"},
    "arms": {"baseline": {}},
    "output": "out",
}
MADE = {"jobs/NAME.py", "docker/out/demo/report/index.html"}  # files that need not be there
PRINTS = {  # a page -> what its Python code prints
    "README.md": r"",
    "docs/gate.md": r"\[(2, ){10}(1, ){14}1\]\n",
    "docs/plans.md": r"([\w-]+ +[#~2ds1.]{25}\n){4}",
    "docs/reproduce.md": r"at most [01] of 255 levels apart\nat most 0 of 255 levels apart\n",
    "tgate_batch/demo/README.md": r"",
}


@dataclass(frozen=True)
class Snippet:
    """A command of a fenced shell block, or the whole of another fenced block."""

    page: str
    line: int  # of the page, from 1
    language: str  # "" for what is no code
    text: str

    @property
    def name(self) -> str:
        """The command without its comment; of other blocks the first line."""
        lines = self.text.replace("\\\n", " ") if self.language == "bash" else self.text
        return " ".join(re.sub(r"\s#.*", "", lines.split("\n")[0]).split())

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.name}"


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def snippets(page: str) -> list[Snippet]:
    """Every fenced block in order; each command of a shell block alone."""
    text, found = text_of(page), []
    blocks = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert text.count("```") == 2 * len(blocks), f"{page}: a block is not fenced as the others are"
    for block in blocks:
        parts = [block[2]]
        if block[1] == "bash":
            parts = re.findall(r"^(?:.*\\\n)*.*\S.*$", block[2], re.MULTILINE)
        start = block.start(2)
        for part in parts:
            line = text.count("\n", 0, text.index(part, start)) + 1
            found.append(Snippet(page, line, block[1], part))
    return found


SNIPPETS = {page: snippets(page) for page in PAGES}
ALL = [snippet for found in SNIPPETS.values() for snippet in found]


def is_run(snippet: Snippet) -> bool:
    return not any(fnmatch.fnmatchcase(snippet.name, pattern) for pattern in NOT_RUN)


@pytest.mark.parametrize("name", [*NOT_RUN, *SMALLER, *sorted(SLOW)])
def test_what_is_said_here_of_a_snippet_is_said_of_one_that_stands_in_a_document(name):
    assert fnmatch.filter([snippet.name for snippet in ALL], name)


def test_every_page_with_python_code_has_its_output_here():
    assert {one.page for one in ALL if one.language == "python"} == set(PRINTS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The demo's arms on two prompts, as README's first command draws them, without Ray."""
    folder = tmp_path_factory.mktemp("documents") / "demo"
    smaller = shlex.split(SMALLER["tgate-batch render --config demo"])
    local = ["--set", "workers.executor=local", "--output", str(folder)]
    assert run(["render", "--config", "demo", *smaller, *local]) == 0
    return folder


@pytest.fixture
def here(drawn, tmp_path, monkeypatch, torch_home) -> Path:
    """The working folder: a checkout's, with what a reader has drawn and fetched before."""
    for folder in ("jobs", "configs", "tgate_batch"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    shutil.copytree(drawn, tmp_path / "out" / "demo")
    captions = [{"id": 1, "image_id": 1, "caption": "a cat"}]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"annotations": captions}))
    monkeypatch.setenv("TORCH_HOME", torch_home)
    np.savez_compressed(tmp_path / "coco2014-inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Path:
    """A folder of `python` and `tgate-batch`: this interpreter, this checkout."""
    folder = tmp_path_factory.mktemp("commands")
    for name, words in (("python", ""), ("tgate-batch", "-m tgate_batch")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path_factory) -> None:
    """Checkpoints of the hub are the catalogue's tiny models, and they stay on the CPU."""
    from diffusers import DiffusionPipeline

    from tgate_batch.models import catalogue

    rows = catalogue.CATALOGUE.values()
    models = {row.checkpoint: row.name for row in rows if row.unet is None}
    real, to = DiffusionPipeline.from_pretrained.__func__, DiffusionPipeline.to

    def from_pretrained(cls: Any, path: Any, **options: Any) -> Any:
        if path in models:
            path = catalogue.save_tiny(models[path], tmp_path_factory.mktemp("hub"))
        return real(cls, path, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(
        DiffusionPipeline, "to", lambda self, place: self if place == "cuda" else to(self, place)
    )


@pytest.fixture
def local_ray() -> Iterator[None]:
    import ray

    from tgate_batch.execute.ray import start

    start()
    yield
    ray.shutdown()


def pages() -> Iterator[Any]:
    """Every page with blocks, without its slow ones; and with them, where it has some."""
    for page, found in SNIPPETS.items():
        if found:
            yield pytest.param(page, False, id=page)
        if any(snippet.name in SLOW for snippet in found):
            yield pytest.param(page, True, id=f"{page}, all", marks=pytest.mark.slow)


@pytest.mark.parametrize(("page", "slow"), pages())
def test_page_runs_from_top_to_bottom(page, slow, here, commands, hub, request):
    names: dict[str, Any] = {}
    said: str | None = ""  # by the command before; None: it was not run
    printed = ""
    for snippet in SNIPPETS[page]:
        if not is_run(snippet) or (snippet.name in SLOW and not slow):
            said = None
            if snippet.name == "tgate-batch render --config run.yaml":
                shutil.copytree("out/demo", "out/sdxl")  # as if it had been run
        elif snippet.language == "bash":
            said = typed(snippet, commands)
        elif snippet.language == "python":
            if "ray.data" in snippet.text:
                request.getfixturevalue("local_ray")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(snippet.text, str(snippet), "exec"), names)
            said = out.getvalue()
            printed += said
        else:
            check(snippet, said)
    assert re.fullmatch(PRINTS.get(page, ""), printed)


def typed(snippet: Snippet, commands: Path) -> str:
    """Runs a command as a reader types it; what it prints."""
    if snippet.name == "tgate-batch render --config demo":
        shutil.rmtree("out/demo")
    command = f"{snippet.name} {SMALLER.get(snippet.name, '')}"
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{snippet}\n{done.stdout}{done.stderr}"
    return done.stdout


def check(snippet: Snippet, said: str | None) -> None:
    """Reads a block that is not run: data, or what the command before it prints."""
    if snippet.language == "yaml":
        Path("given.yaml").write_text(snippet.text)
        beside = WHOLE if snippet.page in PARTS else {}
        config.parse(beside | config.plain("given.yaml"))
    elif snippet.language == "json":
        json.loads(snippet.text)
    elif snippet.language == "text":
        assert snippet.page == "docs/plans.md"  # tables of plans: tests/gate/test_table.py has them
    else:
        assert snippet.language == "", f"{snippet}: nothing here runs {snippet.language}"
        assert said is None or numberless(snippet.text) in numberless(said), str(snippet)


def numberless(text: str) -> str:
    """Without the numbers of prompts: two of the demo's are drawn here."""
    return re.sub(r"demo-\d+", "demo-N", text)


@dataclass(frozen=True)
class Mention:
    """A call of the command line, in a block or in the text between."""

    page: str
    words: tuple[str, ...]
    whole: bool  # as one types it; else what the text speaks of

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def mentions() -> Iterator[Mention]:
    for snippet in ALL:
        if snippet.language == "bash":
            yield from (Mention(snippet.page, words, True) for words in calls(snippet.name))
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", text):
            yield from (Mention(page, words, False) for words in calls(span))


def calls(text: str) -> Iterator[tuple[str, ...]]:
    """The words after each `tgate-batch`, and after each `python jobs/NAME.py` with its name."""
    try:
        words = shlex.split(text)
    except ValueError:  # no shell: half of a quotation
        return
    for place, word in enumerate(words):
        job = re.fullmatch(r"jobs/([a-z_]+)\.py", word)
        if word != "tgate-batch" and not job:
            continue
        given = [job[1].replace("_", "-")] if job else []
        for following in words[place + 1 :]:
            if following in (">", "|", "&&", ";"):
                break
            given.append(following)
        yield tuple(given)


@pytest.mark.parametrize("mention", sorted({*mentions()}, key=str), ids=str)
def test_command_line_takes_what_a_document_says(mention, monkeypatch):
    name, *words = mention.words or ("--help",)
    if name.isupper() or name == "...":  # it stands for any
        return
    if name not in COMMANDS:
        assert name in ("--help", "--version")
        return
    module = import_module(f"tgate_batch.cli.{name.replace('-', '_')}")
    monkeypatch.setattr(module, "run", lambda options: None)
    assert fault([name, *words], mention.whole) is None
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= options(module) or name == "bench"  # `fault` parses its options
    for place, word in enumerate(words):
        if word == "--config":
            is_made = f"> {words[place + 1]}" in text_of(mention.page)
            assert is_made or config.find(words[place + 1]).is_file()


@pytest.mark.parametrize(
    ("words", "whole"),
    [("render --confg demo", True), ("verify", True), ("bench gate --stepz 3", False)],
)
def test_planted_wrong_command_is_found(words, whole):
    assert fault(words.split(), whole) is not None


@pytest.mark.parametrize("language", ["", "ruby"])
def test_planted_block_that_nothing_runs_is_found(language):
    with pytest.raises(AssertionError):
        check(Snippet("README.md", 1, language, "puts 1"), said="")


def fault(words: list[str], whole: bool) -> str | None:
    """What the parser says against a command; in a text a part may be left out."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            run(words)
            if words[0] == "bench" and words[1] in BENCHMARKS:
                option_parser(words[1], find_benchmark(words[1])).parse_args(words[2:])
        except SystemExit:
            pass
        else:
            return None
    *_, line = said.getvalue().splitlines()
    left_out = ("arguments are required" in line, "expected one argument" in line)
    return None if any(left_out) and not whole else line


def options(command: Any) -> set[str]:
    """Every option of a command, those of its parts too."""
    parsers = [argparse.ArgumentParser()]
    command.configure(parsers[0])
    found = {"--log"}
    for parser in parsers:
        found |= set(parser._option_string_actions)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


@pytest.mark.parametrize("page", PAGES)
def test_files_and_make_targets_that_a_document_names_exist(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [name for name in links if not (ROOT / page).parent.joinpath(name).exists()] == []
    folders = "benchmarks|configs|docker|docs|jobs|tests|tgate_batch"
    named = set(re.findall(rf"(?<![\w/])((?:{folders})/[\w./-]+\.\w+)", text)) - MADE
    beside = (ROOT / page).parent
    assert [
        name for name in sorted(named) if not any((at / name).is_file() for at in (ROOT, beside))
    ] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
