"""An output folder from a stranger: whatever its files say, it stays what it is, a folder.

A run's own files are changed value by value: every JSON file, line, footer and cell of text. Then
the commands that read outputs are called. Nothing outside the output may change, nothing of it may
run, and what is shown holds no control characters and no script.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tgate_batch import config, say, workflow
from tgate_batch.cli.job import told
from tgate_batch.cli.main import run as command
from tgate_batch.output import layout

SECONDS_A_COMMAND = 120
MODULE = "hostile_module"  # a file of this name lies in the output and in the current folder

TRAVERSALS = [
    "../../victim/thesis.tex",
    "../victim/thesis.tex",
    "{victim}",
    "x/../../../victim/new",
]
TEXTS = [
    *TRAVERSALS,
    "\x1b]0;owned\x07\x1b[2J\x1b[1;32msound\x1b[0m: every file",
    "a\nsound: every file is what the ledger and the prompts demand\r",
    "a\u202egpj.exe\u2066 \x9b31m \u2028 \x00 b",
    "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>",
    "\" onload=alert(1) x='",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {0.__class__} %s %n",
    MODULE,
    "",
    "x" * 5000,
    "\ud800",
]
NUMBERS = [-1, 0, 7, 2**31, 2**63, 10**30, 10**400, 1.5, 1e308, float("nan"), float("inf")]
OTHERS = [None, True, [], {}, ["x"], {"x": 1}, [[[]]], {"../../victim/thesis.tex": "x"}]
VALUES = [*TEXTS, *NUMBERS, *OTHERS]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> dict:
    """A finished run of 6 prompts in 3 shards with two arms, one of whose pictures failed."""
    here = tmp_path_factory.mktemp("run")
    (here / "captions.txt").write_text("".join(f"picture {number}\n" for number in range(6)))
    (here / "reference").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(here / "reference" / f"{number}.png")
    settings = {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(here / "captions.txt"), "shard_size": 2},
        "sampling": {"steps": 3, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 1}},
        "workers": {"executor": "local"},
        "score": {"reference": str(here / "reference")},
        "output": str(here / "out"),
    }
    assert workflow.render(config.parse(settings)) == 0
    return settings


class Place:
    """A folder with an output that may be spoilt, and much beside it that is not to be touched."""

    def __init__(self, run: dict, here: Path):
        self.here, self.out, self.exported = here, here / "deep" / "out", here / "exported"
        self.victim = here / "victim" / "thesis.tex"
        self.victim.parent.mkdir(parents=True)
        self.victim.write_text("years of work")
        self.out.parent.mkdir()
        (here / "deep" / "victim").mkdir()
        (here / "deep" / "victim" / "thesis.tex").write_text("more years")
        (here / "cwd").mkdir()
        self.config = here / "run.yaml"
        self.config.write_text(yaml.safe_dump(run | {"output": str(self.out)}))
        self._run = run
        self.ran = here / "ran"
        self._code = f"import pathlib; pathlib.Path({str(self.ran)!r}).touch()\n"
        (here / "cwd" / f"{MODULE}.py").write_text(self._code)

    def fresh(self) -> Path:
        """A sound copy of the output, with a module of the stranger's beside its files."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.exported, ignore_errors=True)
        shutil.copytree(self._run["output"], self.out)
        (self.out / f"{MODULE}.py").write_text(self._code)
        return self.out

    def outside(self) -> dict[str, Any]:
        """Everything beside the output and the export."""
        return {
            str(path): path.read_bytes() if path.is_file() else None
            for path in self.here.rglob("*")
            if not path.is_relative_to(self.out) and not path.is_relative_to(self.exported)
        }

    def commands(self) -> dict[str, list[str]]:
        out, of_config = str(self.out), ["--config", str(self.config)]
        return {
            "status": ["status", out, "--errors"],
            "verify": ["verify", out],
            "export": ["export", out, "--to", str(self.exported)],
            "report": ["report", *of_config],
            "score": ["score", *of_config],
            "repair": ["verify", out, "--repair"],
            "render": ["render", *of_config],
            "again": ["status", out],
        }


@pytest.fixture
def place(run, tmp_path, monkeypatch) -> Place:
    made = Place(run, tmp_path)
    monkeypatch.chdir(tmp_path / "cwd")
    before = list(sys.path)
    yield made
    sys.path[:] = before
    say.as_json(False)


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def odd(text: str) -> list[str]:
    """Characters that no terminal and no page is to be given."""
    return sorted(
        {
            one
            for one in text
            if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") and one != "\n"
        }
    )


def called(place: Place, name: str) -> tuple[int, str]:
    """Runs a command in this process; its exit code and all that it said, which is harmless."""
    said = io.StringIO()
    before = place.outside()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        at_most(SECONDS_A_COMMAND),
    ):
        code = told(lambda: command(place.commands()[name]))
    text = said.getvalue()
    assert place.outside() == before, "something outside the output changed"
    assert not place.ran.exists(), "the stranger's code ran"
    assert "Traceback" not in text, text
    assert odd(text) == [], text
    assert code in (0, 1, 2, 3, 4)
    page = place.out / layout.REPORT_PAGE
    if name in ("report", "score", "render") and page.exists():
        assert foreign(page.read_text(encoding="utf-8")) == []
    return code, text


class _Tags(HTMLParser):
    """The scripts of a page, and every attribute that could run something."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts, self.attributes = 0, []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.scripts += tag in ("script", "iframe", "object", "embed", "base", "form")
        for key, value in attributes:
            if key.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.attributes.append(f"<{tag} {key}={value}>")


def foreign(page: str) -> list[str]:
    """What a page has that the report's own has not: a second script, a handler, an escape."""
    tags = _Tags()
    tags.feed(page)
    found = [*tags.attributes, *odd(page.replace("\t", ""))]
    return found if tags.scripts == 1 else [*found, f"{tags.scripts} scripts"]


# ---- what can be changed ----

Change = Callable[[Path, Any], None]


def leaves(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The ways to every value in plain data, to lists and sections too, and to every key."""
    if way:
        yield way
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*way, ("key", key))
            yield from leaves(item, (*way, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:3]):
            yield from leaves(item, (*way, number))


def changed(content: Any, way: tuple, value: Any) -> Any:
    """Plain data with another value, or another key, at the end of a way."""
    if not way:
        return value
    first, *rest = way
    if isinstance(first, tuple):
        return {(str(value) if key == first[1] else key): item for key, item in content.items()}
    content = dict(content) if isinstance(content, dict) else list(content)
    content[first] = changed(content[first], tuple(rest), value)
    return content


def in_json(file: str, way: tuple) -> Change:
    def change(out: Path, value: Any) -> None:
        content = json.loads((out / file).read_text())
        (out / file).write_text(json.dumps(changed(content, way, value)))

    return change


def in_line(file: str, number: int, way: tuple) -> Change:
    def change(out: Path, value: Any) -> None:
        lines = (out / file).read_text().splitlines()
        lines[number] = json.dumps(changed(json.loads(lines[number]), way, value))
        (out / file).write_text("\n".join(lines) + "\n")

    return change


def in_footer(file: str, key: bytes, way: tuple | None) -> Change:
    def change(out: Path, value: Any) -> None:
        table = pq.read_table(out / file)
        footer = dict(table.schema.metadata)
        if way is None:
            footer[key] = text_of(value)
        else:
            footer[key] = json.dumps(changed(json.loads(footer[key]), way, value)).encode()
        rewritten(out / file, table.replace_schema_metadata(footer))

    return change


def text_of(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="surrogatepass")


def in_cell(file: str, column: str) -> Change:
    """Another text in the first row of a column of text."""

    def change(out: Path, value: Any) -> None:
        table = pq.read_table(out / file)
        cells = table[column].to_pylist()
        cells[0] = text_of(value).decode(errors="replace")
        number = table.schema.get_field_index(column)
        field = table.schema.field(number)
        rewritten(out / file, table.set_column(number, field, pa.array(cells, field.type)))

    return change


def rewritten(file: Path, table: pa.Table) -> None:
    """Writes a table as ours are written: a shard's row group each, where there are several."""
    groups = pq.ParquetFile(file).metadata
    rows = groups.row_group(0).num_rows if groups.num_row_groups else 32
    pq.write_table(table, file, row_group_size=rows, write_page_checksum=True)


def in_sums(file: str, way: tuple) -> Change:
    def change(out: Path, value: Any) -> None:
        with np.load(out / file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        about = changed(json.loads(str(arrays["about"])), way, value)
        arrays["about"] = np.array(json.dumps(about))
        np.savez(out / file, **arrays)

    return change


def changes(out: Path) -> dict[str, Change]:
    """Every place of a run in which a stranger may say something, by a name."""
    found: dict[str, Change] = {}
    for path in sorted(out.rglob("*")):
        file = path.relative_to(out).as_posix()
        if path.suffix == ".json":
            for way in leaves(json.loads(path.read_text())):
                found[f"{file} {way}"] = in_json(file, way)
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                for way in leaves(json.loads(line)):
                    found[f"{file} {number} {way}"] = in_line(file, number, way)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                about = json.loads(str(archive["about"])) if "about" in archive else None
            for way in leaves(about):
                found[f"{file} {way}"] = in_sums(file, way)
        elif path.suffix == ".parquet":
            schema = pq.read_schema(path)
            for key, text in (schema.metadata or {}).items():
                if key == b"ARROW:schema":
                    continue
                found[f"{file} footer {key.decode()}"] = in_footer(file, key, None)
                with contextlib.suppress(ValueError):
                    for way in leaves(json.loads(text)):
                        found[f"{file} footer {key.decode()} {way}"] = in_footer(file, key, way)
            for field in schema if not file.startswith(layout.PROMPTS) else ():
                if field.type == pa.string():
                    found[f"{file} column {field.name}"] = in_cell(file, field.name)
    return found


def with_claim_and_damage(out: Path) -> None:
    """Two files that stand there only at times."""
    claim = {
        "host": socket.gethostname(),
        "pid": 1,
        "process_started": 1.5,
        "since": "2026-01-01 00:00:00 +0000",
        "token": "abc",
        "beats": 3,
        "id": "abc",
        "seconds": 1.0,
        "workers": 1,
        "born": 1.0,
    }
    (out / layout.CLAIM).write_text(json.dumps(claim))
    shard = layout.shard_file(layout.images("sd15", "tgate"), 1)
    (out / layout.DAMAGED).write_text(json.dumps({shard: "a page is damaged"}))


def of_kinds(out: Path) -> dict[str, dict[str, Change]]:
    """The places by the kind of their file, so that none is drowned by files with many values."""
    found: dict[str, dict[str, Change]] = {}
    for name, change in changes(out).items():
        kind = name.partition(" ")[0].partition("/")[0]
        if " footer " in name:
            kind += " footer"
        found.setdefault(kind, {})[name] = change
    return found


def case(kinds: dict[str, dict[str, Change]], seed: int, victim: Path) -> tuple[str, Change, Any]:
    """A place and what it is to say, of a seed and nothing else."""
    pick = random.Random(seed)
    of_kind = kinds[sorted(kinds)[seed % len(kinds)]]
    name = pick.choice(sorted(of_kind))
    value = pick.choice(pick.choice([TEXTS, TEXTS, NUMBERS, OTHERS]))
    if isinstance(value, str):
        value = value.replace("{victim}", str(victim))
    return name, of_kind[name], value


def tried(place: Place, seed: int, names: list[str]) -> Counter:
    """Spoils a copy of the run as a seed says, and calls commands on it: command, code -> times."""
    out = place.fresh()
    with_claim_and_damage(out)
    name, change, value = case(of_kinds(out), seed, place.victim)
    change(out, value)
    found: Counter = Counter()
    for word in names:
        try:
            code, _ = called(place, word)
        except Exception as error:
            told_of = f"seed {seed}: {word}: {name} is {value!r:.80}: {error!r:.2000}"
            raise AssertionError(told_of) from error
        found[word, code] += 1
    return found
