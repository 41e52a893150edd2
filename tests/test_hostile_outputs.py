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
from deadline import at_most
from PIL import Image

from tgate_batch import config, console, workflow
from tgate_batch.cli.job import exit_code_of
from tgate_batch.cli.main import run as command
from tgate_batch.output import layout, lock

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
    "a\nok: every file matches the ledger and the prompts\r",
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
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)  # a claim that nobody renews is soon dead
    monkeypatch.chdir(tmp_path / "cwd")
    before = list(sys.path)
    yield made
    sys.path[:] = before
    console.as_json(False)


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
        code = exit_code_of(lambda: command(place.commands()[name]))
    text = said.getvalue()
    assert place.outside() == before, "something outside the output changed"
    assert not place.ran.exists(), "the stranger's code ran"
    assert "Traceback" not in text, text
    bars = "\r" if name == "render" else ""  # diffusers shows them while it loads
    assert [one for one in odd(text) if one not in bars] == [], text
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
        for number, item in enumerate(value[:7]):
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
            for field in schema:
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


READING = ["status", "verify", "report"]
CHANGING = ["export", "repair", "score", "render"]


def test_a_hostile_output_harms_nothing_outside_itself(place):
    """Each kind of file once, under the commands that read; a few under those that write too."""
    found: Counter = Counter()
    for seed in range(len(of_kinds(place.fresh()))):
        found += tried(place, seed, [READING[seed % 3], CHANGING[seed % 2]])
    for seed in range(40, 42):
        found += tried(place, seed, ["score", "render"])
    assert {word for word, _ in found} == {*READING, *CHANGING}


@pytest.mark.slow
def test_500_hostile_outputs_harm_nothing_outside_themselves(place, capsys):
    found: Counter = Counter()
    for seed in range(1000, 1500):
        found += tried(place, seed, [*READING, *CHANGING, "again"])
    with capsys.disabled():
        print("\n", dict(found))
    assert {word for word, _ in found} == {*READING, *CHANGING, "again"}


# ---- planted by hand: what was said, and by which command, what is told ----


def in_ledger(change: Callable[[dict], None]) -> Callable[[Place], None]:
    return in_file(layout.LEDGER, lambda ledger: change(ledger["folders"]))


def in_file(name: str, change: Callable[[dict], Any]) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        content = json.loads((place.out / name).read_text())
        change(content)
        (place.out / name).write_text(json.dumps(content))

    return plant


def in_text(name: str, text: str) -> Callable[[Place], None]:
    return lambda place: (place.out / name).write_text(text) and None


def noted_damaged(name: str) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        named = name.format(victim=place.victim)
        (place.out / layout.DAMAGED).write_text(json.dumps({named: "a page is damaged"}))

    return plant


def cleared(name: str) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        in_ledger(lambda folders: folders.update({name.format(victim=place.victim.parent): None}))(
            place
        )

    return plant


def a_part_of_a_number_without_end(place: Place) -> None:
    """The prompts' file says and bears a number that no set of prompts reaches."""
    first = place.out / layout.prompts_part(0)
    for number in range(3):
        in_footer(layout.prompts_part(0), PLANS, (number, 3))(place.out, 10**12)
    first.rename(place.out / layout.prompts_part(10**12))
    in_ledger(lambda folders: folders[layout.PROMPTS].update(shards=4))(place)


def a_worker_says(content: str) -> Callable[[Place], None]:
    return lambda place: (place.out / layout.worker("w")).write_text(content) and None


def a_link(name: str, target: str) -> Callable[[Place], None]:
    """A folder or a file of the output leads out of it."""

    def plant(place: Place) -> None:
        path = place.out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(place.here / target)

    return plant


def a_pipe(name: str) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        (place.out / name).unlink(missing_ok=True)
        os.mkfifo(place.out / name)

    return plant


def a_file_named(name: str) -> Callable[[Place], None]:
    return lambda place: (place.out / name).write_text("x") and None


def claimed_by(**said: Any) -> Callable[[Place], None]:
    def plant(place: Place) -> None:
        claim = {"host": "h", "pid": 7, "since": "now", "token": "t", "beats": 0} | said
        (place.out / layout.CLAIM).write_text(json.dumps(claim))

    return plant


PLANS = b"tgate_batch.shards"
ARM = layout.images("sd15", "tgate")
SCORES = layout.scores("sd15", "tgate")
ESCAPE = "\x1b]0;owned\x07\nok: every file matches the ledger and the prompts"

PLANTED: dict[str, tuple[Callable[[Place], None], str, int, str]] = {
    "a damaged file outside": (
        noted_damaged("../victim/thesis.tex"),
        "repair",
        1,
        "../victim/thesis.tex is not a file of a run",
    ),
    "a damaged file elsewhere": (noted_damaged("{victim}"), "repair", 1, "is not a file of a run"),
    "a damaged file over a folder of a run": (
        noted_damaged("images/../../victim/shard-00000.parquet"),
        "repair",
        1,
        "is not a file of a run",
    ),
    "a damaged file of no text": (
        in_text(layout.DAMAGED, '{"images/m/a/shard-00000.parquet": 7}'),
        "status",
        2,
        "damaged.json cannot be used",
    ),
    "a list of damaged files": (in_text(layout.DAMAGED, "[1]"), "status", 2, "damaged.json"),
    "a cleared folder outside": (
        cleared("../victim"),
        "render",
        2,
        "../victim is not a folder of a run",
    ),
    "a cleared folder elsewhere": (cleared("{victim}"), "render", 2, "is not a folder of a run"),
    "a cleared folder over one of a run": (
        cleared("images/../../victim"),
        "render",
        2,
        "is not a folder of a run",
    ),
    "the output itself is cleared": (cleared(""), "render", 2, "is not a folder of a run"),
    "pictures of a format that is a path": (
        in_ledger(lambda all: all[ARM].update({"images.format": "x/../../../victim/new"})),
        "export",
        2,
        "images.format is none of webp, png, jpeg",
    ),
    "pictures of a format that is a section": (
        in_ledger(lambda all: all[ARM].update({"images.format": {"a": 1}})),
        "export",
        2,
        "made_of.json cannot be used",
    ),
    "more pictures of a prompt than memory holds": (
        in_ledger(lambda all: all[ARM].update({"sampling.images_per_prompt": 10**15})),
        "verify",
        1,
        "made_of.json",
    ),
    "a ledger that is a list": (in_text(layout.LEDGER, "[]"), "status", 2, "has format 1"),
    "a ledger that nests": (
        in_text(layout.LEDGER, "[" * 100_000),
        "status",
        2,
        "it is nested too deeply",
    ),
    "a config with a section for a number": (
        in_file(layout.RUN, lambda run: run["config"]["sampling"].update(steps={})),
        "status",
        2,
        "run.json cannot be used",
    ),
    "a config with a number of 400 digits": (
        in_file(layout.RUN, lambda run: run["config"]["sampling"].update(seed=10**400)),
        "status",
        2,
        "is out of range",
    ),
    "a number of shards that is a text": (
        in_file(layout.RUN, lambda run: run.update(shards="3")),
        "status",
        2,
        "run.json cannot be used: shards",
    ),
    "an arm whose name is a path": (
        in_file(layout.RUN, lambda run: run["config"]["arms"].update({"../../victim": None})),
        "export",
        2,
        "cannot name a folder",
    ),
    "a plan of shards of another type": (
        lambda place: in_footer(layout.prompts_part(0), PLANS, (0, 0))(place.out, "../x"),
        "status",
        2,
        "prompts/part-00000.parquet is damaged (its shard plans are unusable: 0.0: "
        "Input should be a valid integer)",
    ),
    "a plan of more shards than there are numbers": (
        lambda place: in_footer(layout.prompts_part(0), PLANS, (0, 0))(place.out, 10**30),
        "status",
        2,
        "prompts/part-00000.parquet is damaged",
    ),
    "a plan of a row group of a number that Arrow does not take": (
        lambda place: in_footer(layout.prompts_part(0), PLANS, (0, 4))(place.out, 2**31),
        "report",
        2,
        "prompts/part-00000.parquet is damaged (its plans do not match its row groups)",
    ),
    "a plan of another file": (
        lambda place: in_footer(layout.prompts_part(0), PLANS, (0, 3))(place.out, 7),
        "report",
        2,
        "prompts/part-00000.parquet is damaged (its plans do not match its row groups)",
    ),
    "a plan of more prompts than its shard has": (
        lambda place: in_footer(layout.prompts_part(0), PLANS, (0, 1))(place.out, 3),
        "status",
        2,
        "prompts/part-00000.parquet is damaged (its plans do not match its row groups)",
    ),
    "a file of prompts of a number without end": (
        a_part_of_a_number_without_end,
        "status",
        2,
        "prompts/part-00000.parquet and 1,000 more is missing: of 4 shards of prompts 3 are here",
    ),
    "a ledger of more shards than memory holds": (
        in_ledger(lambda folders: folders[layout.PROMPTS].update(shards=10**15)),
        "verify",
        1,
        "of 3 shards 3 are here",
    ),
    "a worker that is cut off": (a_worker_says('{"seconds": '), "report", 0, "workers/w.json"),
    "a worker of another type": (a_worker_says('{"seconds": 3}'), "report", 0, "workers/w.json"),
    "a worker that is a text": (a_worker_says('"x"'), "report", 0, "left out of the report"),
    "scores with a text for a number": (
        in_file(SCORES, lambda scores: scores.update(fd="<script>")),
        "report",
        2,
        f"{SCORES} cannot be used: fd",
    ),
    "scores of a metric that are a list": (
        in_file(SCORES, lambda scores: scores.update(prompt_accuracy=[])),
        "report",
        2,
        "prompt_accuracy is not a number",
    ),
    "scores of another arm": (
        in_file(SCORES, lambda scores: scores.update(arm="baseline")),
        "report",
        2,
        "it belongs to another arm",
    ),
    "an error that is a script": (
        in_file(
            SCORES,
            lambda scores: scores.update(
                errors=1,
                error_rows=[
                    {"prompt_id": ESCAPE, "image_number": 0, "error": TEXTS[6], "error_kind": "a"}
                ],
                error_kinds=[{"kind": "a", "rows": 1, "error": f"{ESCAPE} {TEXTS[6]}"}],
            ),
        ),
        "report",
        0,
        r"\x1b]0;owned\x07\nok",
    ),
    "a picture that changed most and is of no shard": (
        in_file(
            SCORES,
            lambda scores: scores["most_changed"].update(
                psnr=[
                    {"prompt_id": "none", "image_number": 0, "shard": shard, "value": 1.0}
                    for shard in (0, 10**9)
                ]
            ),
        ),
        "report",
        0,
        "report:",
    ),
    "a history of other types": (
        in_text(layout.HISTORY, '{"id": [], "seconds": "x"}\n7\n{"id": "a", "seconds": 1e400}\n'),
        "report",
        0,
        "report:",
    ),
    "a file whose name is an escape": (
        a_file_named(ESCAPE),
        "verify",
        1,
        r"foreign: \x1b]0;owned\x07\nok: every file",
    ),
    "a holder whose name is an escape": (
        claimed_by(host=ESCAPE, since="\u202e"),
        "status",
        0,
        r"process 7 on \x1b]0;owned",
    ),
    "a holder of a number that no process has": (claimed_by(pid=10**30), "status", 0, "12 of 12"),
    "pictures that lie elsewhere": (a_link(ARM, "victim"), "repair", 1, "shard-00000.parquet"),
    "measurements that lie elsewhere": (
        a_link("scores/sd15", "victim"),
        "score",
        2,
        "is a symbolic link",
    ),
    "a history that lies elsewhere": (
        a_link(layout.HISTORY, "victim/thesis.tex"),
        "score",
        2,
        "is a symbolic link",
    ),
    "a ledger that is a pipe": (a_pipe(layout.LEDGER), "status", 2, "is not a regular file"),
    "a history that is a pipe": (a_pipe(layout.HISTORY), "report", 2, "is not a regular file"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_a_stranger_planted_is_told_in_a_line_and_does_no_harm(place, name):
    plant, word, code, said = PLANTED[name]
    place.fresh()
    plant(place)
    found, text = called(place, word)
    assert said in text
    assert found == code


def test_what_a_repair_of_a_hostile_list_leaves_is_a_sound_output(place):
    (place.fresh() / f"{MODULE}.py").unlink()
    noted_damaged("../victim/thesis.tex")(place)
    a_worker_says('{"seconds": 3}')(place)
    said = called(place, "repair")[1]
    assert "removed: damaged.json" in said
    assert "removed: workers/w.json" in said
    assert called(place, "verify")[0] == 0
