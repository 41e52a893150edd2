"""Valid files, damaged in many ways: each is read as it should be, or refused in one line.

Every case is made of a seed and nothing else.
"""

import io
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deadline import at_most
from hypothesis import given, settings
from hypothesis import strategies as st

from tgate_batch import config
from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.prompts.reader import read_prompts, shards, unique
from tgate_batch.records import Prompt

ROOT = Path(__file__).parents[1]
SECONDS_A_CASE = 10

CAPTIONS = [
    "a cat",
    'a dog, asleep on a "red" sofa',
    "ein Käse, 奶酪, \N{CHEESE WEDGE}",
    "two\ttabs: and a colon",
    "x" * 300,
]
ROWS = [{"id": f"p{number}", "caption": text} for number, text in enumerate(CAPTIONS)]


def _csv(delimiter: str) -> bytes:
    cells = [["id", "caption"], *([row["id"], row["caption"]] for row in ROWS)]
    quoted = (['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells)
    return "\n".join(delimiter.join(line) for line in quoted).encode() + b"\n"


def _parquet(compression: str) -> bytes:
    stream = io.BytesIO()
    columns = {"id": [row["id"] for row in ROWS], "caption": CAPTIONS, "n": range(len(ROWS))}
    pq.write_table(pa.table(columns), stream, compression=compression, row_group_size=2)
    return stream.getvalue()


def _jsonl(**options: bool) -> bytes:
    return "\n".join(json.dumps(row, **options) for row in ROWS).encode()


VALID = {
    "txt": ["\n".join(CAPTIONS).encode()],
    "csv": [_csv(",")],
    "tsv": [_csv("\t")],
    "jsonl": [_jsonl(), _jsonl(ensure_ascii=False)],
    "parquet": [_parquet("none"), _parquet("snappy"), _parquet("zstd")],
    "json": [json.dumps({"info": {}, "annotations": ROWS}, indent=1).encode()],
    "yaml": [file.read_bytes() for file in sorted((ROOT / "configs").glob("*.yaml"))],
}
TOKENS = [
    *(
        b"\0",
        b"\n",
        b"\r",
        b'"',
        b"'",
        b",",
        b"\t",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\\",
        b"#",
        b"-",
    ),
    *(b"null", b"true", b"NaN", b"-1", b"1e999", b"9" * 5000, b"0x", b"~", b".inf", b"2026-99-99"),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!binary ", b"---\n", b"%YAML 9\n"),
    *(b"../../x", b"/etc/passwd", b"s3://", b"{}", b"[]", b"no: ", b"? ", b"id", b"caption", b'""'),
    *(b"x" * 200_000, b"[" * 3000, b"\x1f\x8b", b"PAR1", b"a.b=c", b"\x1b[31m", b"gate_step: "),
]

ODD = [  # values as JSON writes them, and some that only YAML has
    *(b"7", b"-1", b"0", b"1.5", b"1e999", b"true", b"null", b"[1]", b'{"a": 1}', b"[[]]", b'""'),
    *(b'"b"', b'" "', b'"a\\u0000b"', b'"a\\nb"', b'"\\ud800"', b'"p1"', b'"' + b"x" * 600 + b'"'),
    *(b"9" * 5000, b"9" * 30, b"[" * 30_000, b'{"a":' * 30_000, b'"' + b"x" * 100_001 + b'"'),
    *(b".nan", b"2026-01-01", b"2026-99-99", b"*a", b"&a [*a]", b"{no: 1}", b"!!set {a}", b"~"),
]
ODD_TEXTS = [
    *(b"", b" ", b"a\0b", b"a\nb", b"a\x1bb", b"p1", b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"x" * 600, b"x" * 100_001, b"x" * 140_000, b"9" * 5000, b'a" "b', b'a","b', b"\xff"),
]
ODD_UTF8 = ODD_TEXTS[:6]

Random = random.Random


def flipped(content: bytes, pick: Random) -> bytes:
    made = bytearray(content)
    for _ in range(pick.choice([1, 1, 2, 8, 64])):
        made[pick.randrange(len(made))] ^= 1 << pick.randrange(8)
    return bytes(made)


def cut(content: bytes, pick: Random) -> bytes:
    return content[: pick.randrange(len(content))]


def without_a_piece(content: bytes, pick: Random) -> bytes:
    start = pick.randrange(len(content))
    return content[:start] + content[start + pick.choice([1, 2, 10, 100]) :]


def with_a_token(content: bytes, pick: Random) -> bytes:
    for _ in range(pick.choice([1, 1, 3])):
        place = pick.randrange(len(content) + 1)
        content = content[:place] + pick.choice(TOKENS) + content[place:]
    return content


def with_a_token_in_place_of_a_word(content: bytes, pick: Random) -> bytes:
    words = content.split(b" ")
    words[pick.randrange(len(words))] = pick.choice(TOKENS)
    return b" ".join(words)


def with_lines_again(content: bytes, pick: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    for _ in range(pick.choice([1, 3])):
        lines.insert(pick.randrange(len(lines) + 1), pick.choice(lines))
    return b"".join(lines)


def with_lines_moved(content: bytes, pick: Random) -> bytes:
    lines = content.splitlines(keepends=True)
    pick.shuffle(lines)
    return b"".join(lines)


def in_another_encoding(content: bytes, pick: Random) -> bytes:
    coding = pick.choice(["utf-16", "utf-32", "latin-1", "cp1252", "utf-7", "cp037"])
    return content.decode("latin-1").encode(coding, errors="replace")


def with_other_values(content: bytes, pick: Random) -> bytes:
    """Values of JSON rows or of a config become odd ones: most of them are JSON and YAML."""
    for _ in range(pick.choice([1, 1, 2])):
        starts = [found.end() for found in re.finditer(rb": |- ", content)] or [0]
        start = pick.choice(starts)
        ends = [place for mark in b",}\n" if (place := content.find(mark, start)) > 0]
        content = content[:start] + pick.choice(ODD) + content[min(ends, default=len(content)) :]
    return content


def with_other_cells(content: bytes, pick: Random) -> bytes:
    """Cells of a table become odd ones, each rightly quoted."""
    for _ in range(pick.choice([1, 1, 2])):
        start, end = pick.choice([found.span() for found in re.finditer(rb'"[^"]*"', content)])
        content = content[:start] + b'"' + pick.choice(ODD_TEXTS) + b'"' + content[end:]
    return content


def nested(content: bytes, pick: Random) -> bytes:
    deep = pick.choice([3, 30, 3000, 30_000])
    place = pick.randrange(len(content) + 1)
    opened, closed = pick.choice([(b"[", b"]"), (b'{"a": ', b"}"), (b"- ", b""), (b'"', b'"')])
    return content[:place] + opened * deep + b"1" + closed * deep + content[place:]


def of_another_kind(content: bytes, pick: Random) -> bytes:
    return pick.choice(VALID[pick.choice(sorted(VALID))])


def spliced(content: bytes, pick: Random) -> bytes:
    other = of_another_kind(content, pick)
    return content[: pick.randrange(len(content))] + other[pick.randrange(len(other)) :]


def nothing_or_noise(content: bytes, pick: Random) -> bytes:
    return pick.choice([b"", b"\n" * 50, b"\xef\xbb\xbf", pick.randbytes(pick.randrange(1, 4000))])


def of_other_values(content: bytes, pick: Random) -> bytes:
    """Whole again, as its own writer writes it, with odd values in its rows."""
    odd = pick.choice([None, True, 7, 1.5, b"abc", ["a"], {"a": 1}, *map(bytes.decode, ODD_UTF8)])
    stream = io.BytesIO()
    rows = [[row["id"] for row in ROWS], list(CAPTIONS)]
    rows[pick.randrange(2)] = [odd] * len(ROWS) if pick.random() < 0.5 else [None, *["b"] * 4]
    names = pick.choice([["id", "caption"], ["id", "id"], ["caption", "caption"], ["a", "b"]])
    pq.write_table(pa.table([pa.array(values) for values in rows], names=names), stream)
    return stream.getvalue()


BYTES = [flipped, cut, without_a_piece, with_a_token, in_another_encoding, spliced]
WORDS = [with_a_token_in_place_of_a_word, with_lines_again, with_lines_moved]
WHOLE = [nested, of_another_kind, nothing_or_noise]
VALUES = {  # three times as often as each of the others
    **dict.fromkeys(("json", "jsonl", "yaml"), with_other_values),
    **dict.fromkeys(("csv", "tsv"), with_other_cells),
    "txt": with_a_token,
    "parquet": of_other_values,
}
MUTATIONS = {kind: [*BYTES, *WORDS, *WHOLE, *[values] * 3] for kind, values in VALUES.items()}


def case(seed: int) -> tuple[str, str, bytes]:
    """The kind of file, how it was changed, and its content."""
    pick = Random(seed)
    kind = pick.choice(sorted(VALID))
    mutation = pick.choice(MUTATIONS[kind])
    return kind, mutation.__name__, mutation(pick.choice(VALID[kind]), pick)


def sane(prompts: list[Prompt]) -> bool:
    """Whether they could be rendered and stored."""
    for prompt in prompts:
        assert isinstance(prompt.id, str) and prompt.id.strip()  # noqa: PT018
        assert prompt.text.strip() or prompt.image is not None
        assert "\0" not in prompt.id + prompt.text
        assert "\n" not in prompt.id
        prompt.id.encode(), prompt.text.encode()
    return bool(prompts) and len({prompt.id for prompt in prompts}) == len(prompts)


def outcome(kind: str, content: bytes, folder: Path) -> str:
    """Reads a case; "accepted" or "refused". Whatever else happens fails the test."""
    file = folder / f"file.{kind}"
    file.write_bytes(content)
    try:
        with at_most(SECONDS_A_CASE):
            if kind == "yaml":
                assert config.load(file).models
            else:
                assert sane(list(unique(read_prompts(Prompts(path=str(file))), str(file))))
    except UserError as error:
        said = str(error)
    else:
        return "accepted"
    assert said.isprintable(), repr(said)
    assert file.name in said
    assert len(said) < 1500
    return "refused"


def fuzzed(seeds: range, folder: Path) -> Counter:
    """(kind of file, mutation, outcome) -> cases."""
    found: Counter = Counter()
    for seed in seeds:
        kind, mutation, content = case(seed)
        try:
            found[kind, mutation, outcome(kind, content, folder)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {kind}, {mutation}: {error!r}") from error
    return found


def by(found: Counter, part: int) -> str:
    names = sorted({key[part] for key in found})
    lines = []
    for name in names:
        counts = Counter()
        for key, number in found.items():
            if key[part] == name:
                counts[key[2]] += number
        lines.append(f"{name:32}{counts['refused']:8}{counts['accepted']:9}")
    return "\n".join(lines)


@pytest.mark.parametrize("kind", sorted(VALID))
def test_files_are_valid_before_they_are_damaged(kind, tmp_path):
    assert {outcome(kind, content, tmp_path) for content in VALID[kind]} == {"accepted"}


def test_300_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    found = fuzzed(range(300), tmp_path)
    assert {key[2] for key in found} == {"accepted", "refused"}
    assert {key[0] for key in found} == set(VALID)


@pytest.mark.slow
def test_10000_refusals_of_damaged_files_are_one_line_each(tmp_path, capsys):
    """Goes on until so many files were refused; prints what was tried."""
    found: Counter = Counter()
    seed = 0
    while (refused := sum(n for key, n in found.items() if key[2] == "refused")) < 10_000:
        found += fuzzed(range(seed, seed + 500), tmp_path)
        seed += 500
    with capsys.disabled():
        print(f"\n{seed} damaged files, {refused} refused ({refused / seed:.0%})")
        print(f"{'kind of file':32}{'refused':>8}{'accepted':>9}\n{by(found, 0)}")
        print(f"{'damage':32}{'refused':>8}{'accepted':>9}\n{by(found, 1)}")
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"file"}


steady = settings(deadline=None, derandomize=True, database=None)  # no test asserts a time
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


def is_caption(text: str) -> bool:
    return text.strip().lower() not in ("", "nan")  # pandas' text of an empty cell is refused


@steady
@given(st.lists(TEXTS.filter(is_caption), min_size=1, max_size=20))
def test_jsonl_gives_back_the_captions_that_were_written(tmp_path_factory, texts):
    file = tmp_path_factory.getbasetemp() / "texts.jsonl"
    file.write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))
    found = list(unique(read_prompts(Prompts(path=str(file))), str(file)))
    assert [prompt.text for prompt in found] == [text.strip() for text in texts]


@steady
@given(st.lists(st.sampled_from("abcde"), max_size=8))
def test_unique_refuses_a_list_with_repeats_and_no_other(ids):
    prompts = [Prompt(name, "text") for name in ids]
    if len(set(ids)) == len(ids):
        assert list(unique(prompts, "file")) == prompts
    else:
        with pytest.raises(UserError, match="duplicate ids"):
            list(unique(prompts, "file"))


@steady
@given(st.integers(0, 40), st.lists(st.integers(1, 9), max_size=8))
def test_shards_hold_the_prompts_in_order_and_are_as_large_as_asked(number, sizes):
    prompts = [Prompt(str(index), "text") for index in range(number)]
    made = list(shards(prompts, sizes))
    held = [prompt for shard in made for prompt in shard.prompts]
    assert held == prompts[: sum(sizes)]
    assert [shard.index for shard in made] == list(range(len(made)))
    assert [len(shard.prompts) for shard in made[:-1]] == sizes[: len(made)][:-1]


WORDS_OF_SET = (
    "models prompts path arms baseline gate_step workers min max score weights 0 1 9 -1 output "
    "sampling seed steps . .. = : [ ] { } null no true nan .inf 1e9 \" ' & * ! x \0 \n"
)
PIECES = st.lists(st.sampled_from(WORDS_OF_SET.split(" ")) | st.text(max_size=5), max_size=8)


@steady
@given(PIECES, PIECES)
def test_any_set_option_is_taken_or_refused_in_one_line(key, value):
    try:
        made = config.load(ROOT / "configs" / "demo.yaml", [".".join(key) + "=" + "".join(value)])
    except UserError as error:
        said = str(error)
        assert said.isprintable(), repr(said)
    else:
        assert made.models


COMMANDS = {
    "a config with a key twice": (
        "models: [demo]\nmodels: [sd15]\n",
        [],
        "line 2: the key 'models'",
    ),
    "a config that is no YAML": ("models: [", [], "is not YAML: line 1"),
    "an arm named no": ("arms: {no: {}}", [], 'Fix: quote it: "no"'),
    "more workers than at most": (None, ["--set", "workers={min: 4, max: 2}"], "workers: min 4 is"),
    "a prompt of half a pair": (None, ["--set", "prompts.path=half.jsonl"], "half.jsonl, row 1: a"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_with_bad_input_is_one_line_and_exit_code_2(name, tmp_path):
    text, options, said = COMMANDS[name]
    (tmp_path / "half.jsonl").write_text('{"text": "a\\ud800"}\n')
    file = tmp_path / "bad.yaml"
    file.write_text(text or yaml.safe_dump(RUN))
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "render.py", "--config", file, "--dry-run", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml", "half.jsonl"]


RUN = {
    "models": ["demo"],
    "prompts": {"path": "half.jsonl"},
    "arms": {"baseline": {}},
    "output": "out",
}
