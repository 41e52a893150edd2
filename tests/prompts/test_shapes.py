"""Prompt sets in the shapes in which people have them."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.prompts.reader import count, describe_columns, read_prompts
from tgate_batch.prompts.webui import warn_of_syntax
from tgate_batch.records import AS_THE_RUN, RowSettings


def ids_and_texts(file, **options) -> list[tuple[str, str]]:
    spec = Prompts(path=str(file), **options)
    found = [(prompt.id, prompt.text) for prompt in read_prompts(spec)]
    assert count(spec) == len(found)
    return found


JSON_SETS = {
    "an object of objects": (
        {"a1": {"category": "x", "prompt": "a heron"}, "c3": {"prompt": "a kettle"}},
        [("a1", "a heron"), ("c3", "a kettle")],
    ),
    "an object of texts": (
        {"a1": "a heron", "c3": "a kettle"},
        [("a1", "a heron"), ("c3", "a kettle")],
    ),
    "objects that have an id": (
        {"00": {"id": "00", "prompt": "a cat", "models": {"A": [5, 4]}}},
        [("00", "a cat")],
    ),
    "Karpathy's split": (
        {
            "dataset": "coco",
            "images": [
                {"cocoid": 1, "sentences": [{"raw": "A cup.", "sentid": 1}]},
                {"cocoid": 2, "sentences": [{"raw": "A hat.", "sentid": 2}]},
            ],
        },
        [("1", "A cup."), ("2", "A hat.")],
    ),
    "COCO's captions": (
        {
            "info": {"year": 2014},
            "images": [{"id": 5, "height": 3}],
            "licenses": [],
            "annotations": [{"id": 1, "image_id": 5, "caption": "a"}],
            "more": 3,
        },
        [("1", "a")],
    ),
}


@pytest.mark.parametrize("shape", JSON_SETS)
def test_json_is_read_in_the_shape_in_which_it_is_published(tmp_path, shape):
    content, expected = JSON_SETS[shape]
    file = tmp_path / "set.json"
    for indent in (None, 2):
        file.write_text(json.dumps(content, indent=indent))
        assert ids_and_texts(file) == expected


def test_json_may_be_a_list_of_texts_or_json_lines(tmp_path):
    file = tmp_path / "set.json"
    file.write_text('["a fox", "two robots"]')
    assert [text for _, text in ids_and_texts(file)] == ["a fox", "two robots"]
    file.write_text('{"prompt": "a tent", "seed": 1}\n{"prompt": "a kite", "seed": 2}\n')
    found = list(read_prompts(Prompts(path=str(file))))
    assert [(prompt.text, prompt.overrides.seed) for prompt in found] == [
        ("a tent", 1),
        ("a kite", 2),
    ]
    file.write_text('{"prompt": "a tent"}')
    assert [text for _, text in ids_and_texts(file)] == ["a tent"]


def test_json_of_many_pieces_is_read_as_one_parser_reads_it(tmp_path):
    piece = 'é\\"[{ '
    rows = {f"n{i}": {"prompt": piece * (i % 400) + str(i)} for i in range(3000)}
    file = tmp_path / "set.json"
    file.write_text(json.dumps(rows, indent=1))
    assert file.stat().st_size > 3 << 20
    expected = [(name, row["prompt"].strip()) for name, row in rows.items()]
    assert ids_and_texts(file) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("7", "is none of a list of texts or objects"),
        ('{"x": [1]}', "is none of a list of texts or objects"),
        ('["a", ["b"]]', "row 2: not a JSON object but a list"),
        ('{"a": "x", "b": 7}', "row 2: not a JSON object but 7"),
        ('["a"\n "b"]', "line 2: cannot be read as JSON: Expecting ','"),
        ('["a"] ["b"]', "there is more text after its end"),
    ],
)
def test_json_that_is_no_prompt_set_is_told_in_a_line(tmp_path, content, said):
    file = tmp_path / "set.json"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        list(read_prompts(Prompts(path=str(file))))
    assert said in str(caught.value)


def test_file_of_one_prompt_in_a_folder_or_pattern_has_its_name_as_id(tmp_path):
    (tmp_path / "more").mkdir()
    for name, text in [("7", "a teapot"), ("parti12", "a field\n"), ("more/7", "a pot")]:
        (tmp_path / f"{name}.txt").write_text(text)
    assert ids_and_texts(tmp_path) == [("7", "a teapot"), ("parti12", "a field")]
    assert ids_and_texts(tmp_path / "*.txt") == [("7", "a teapot"), ("parti12", "a field")]
    found = ids_and_texts(tmp_path / "**" / "*.txt")
    assert sorted(found) == [("7", "a teapot"), ("more/7", "a pot"), ("parti12", "a field")]
    (tmp_path / "7.txt").write_text("a teapot\na cup\n")
    assert [name[:8] for name, _ in ids_and_texts(tmp_path)] == ["00000000", "00000001", "parti12"]


def test_repeated_ids_are_numbered_on_demand_whatever_the_offset(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("image_id,caption\n1,a\n1,b\n2,c\n1,d\n")
    whole = [("1", "a"), ("1-2", "b"), ("2", "c"), ("1-3", "d")]
    assert ids_and_texts(file, repeated_ids="number") == whole
    spec = Prompts(path=str(file), repeated_ids="number", offset=1, limit=2)
    assert [(prompt.id, prompt.source_row) for prompt in read_prompts(spec)] == [
        ("1-2", 1),
        ("2", 2),
    ]


TABLE = [("1", 'a "cat"; asleep, or not'), ("2", "a dég")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.csv", 'id;Prompt\n1;"a ""cat""; asleep, or not"\n2;a dég\n'),
        ("set.csv", 'sep=;\r\nid;Prompt\r\n1;"a ""cat""; asleep, or not"\r\n2;a dég\r\n'),
        ("set.csv", 'id\tPrompt\n1\ta "cat"; asleep, or not\n2\ta dég\n'),
        ("set.txt", '\nid\tPrompt\n1\ta "cat"; asleep, or not\n2\ta dég\n'),
        ("set.tsv", 'id,Prompt\n1,"a ""cat""; asleep, or not"\n2,a dég\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_table_is_parted_by_what_parts_its_header(tmp_path, name, content, encoding):
    file = tmp_path / name
    file.write_bytes(content.encode(encoding))
    assert ids_and_texts(file) == TABLE


def test_tabs_in_a_text_file_without_names_are_refused(tmp_path):
    (tmp_path / "set.txt").write_text("1\ta cat\n")
    with pytest.raises(UserError, match=r"row 1: the line has a tab.*Fix: begin the file with"):
        ids_and_texts(tmp_path / "set.txt")


def test_lines_of_options_are_rows_with_settings_wherever_they_stand(tmp_path):
    file = tmp_path / "set.txt"
    file.write_text(
        "a house\n"
        '--prompt "a red fox" --negative_prompt "fog" --seed 42 --width 64 --height 32 --steps 20\n'
        "--prompt a blue fox --cfg_scale 4 --seed -1\n"
        "a -- dash\n"
    )
    found = list(read_prompts(Prompts(path=str(file)), given={"height", "steps"}))
    assert [prompt.text for prompt in found] == ["a house", "a red fox", "a blue fox", "a -- dash"]
    assert [prompt.overrides for prompt in found] == [
        AS_THE_RUN,
        RowSettings("fog", 42, None, 32, 64, 20),
        RowSettings(guidance_scale=4.0),
        AS_THE_RUN,
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('--prompt "a', "its options have an unclosed quote"),
        ("--prompt a --sampler_name Euler", "'--sampler_name' is not an option"),
        ("--seed 1 2 --prompt a", "'2' belongs to no option"),
        ("--seed 1", "no text"),
        ("--prompt a --prompt b", "'--prompt' is repeated"),
    ],
)
def test_line_of_options_that_cannot_be_used_is_refused(tmp_path, line, said):
    (tmp_path / "set.txt").write_text(f"a house\n{line}\n")
    with pytest.raises(UserError) as caught:
        ids_and_texts(tmp_path / "set.txt")
    assert "row 2: " in str(caught.value)
    assert said in str(caught.value)


def test_other_syntax_of_the_web_ui_is_counted_and_named_once(tmp_path, capsys):
    plain = ["a (red) house", "[grey] {x}", "snake__case", "TAKE A BREAKFAST", "at 16:9", "a [b:c]"]
    syntax = [
        "a (tent:1.4)",
        "((best quality))",
        "[[mat]]",
        "<lora:sketch:0.8> a house",
        "a {red|blue} car",
        "in __season__",
        "a castle BREAK a river",
        "a cat --ar 16:9",
        "[a tent:a house:10]",
    ]
    (tmp_path / "set.txt").write_text("\n".join(plain + syntax))
    spec = Prompts(path=str(tmp_path / "set.txt"))
    assert len(list(warn_of_syntax(read_prompts(spec)))) == len(plain + syntax)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: 9 prompts have syntax of the Stable Diffusion web UI")
    assert said.endswith("e.g. '(tent:1.4)' in row 7 of the set")
    list(warn_of_syntax(read_prompts(spec.model_copy(update={"limit": 6}))))
    assert capsys.readouterr().err == ""


def packed(folder, name: str, *parts: tuple[bytes, int]):
    """A compressed file of parts, each so many times."""
    with gzip.open(folder / name, "wb", compresslevel=6) as file:
        for part, times in parts:
            file.write(part * times)
    return folder / name


BOMBS = {
    "a long text": ("a.json.gz", [(b'["', 1), (b"a" * (1 << 20), 100), (b'"]', 1)], "a value of"),
    "empty lists": ("a.json.gz", [(b"[[]", 1), (b",[]" * 1000, 9000), (b"]", 1)], "row 1: not a"),
    "lists aside": (
        "a.json.gz",
        [(b'{"x": [[]', 1), (b",[]" * 1000, 9000), (b'], "annotations": []}', 1)],
        "a list of more than 1,000,000 values",
    ),
    "lists in a value": (
        "a.json.gz",
        [(b'[{"x": [[]', 1), (b",[]" * 1000, 5000), (b"]}]", 1)],
        "more than 250,000 values",
    ),
    "lists in a line": (
        "a.jsonl.gz",
        [(b'{"x": [[]', 1), (b",[]" * 1000, 5000), (b"]}", 1)],
        "row 1: cannot be read as JSON: more than 250,000 values",
    ),
    "deep lists": ("a.json.gz", [(b"[" * 1000, 1000)], "nested too deeply"),
    "cells": ("a.csv.gz", [(b"id,caption\n", 1), (b"," * 1000, 10_000)], "more than 250,000 cells"),
    "cells in quotes": (
        "a.csv.gz",
        [(b"id,caption\n", 1), (b'"x\n",' * 1000, 300)],
        "more than 250,000 cells",
    ),
    "blank lines": (
        "a.txt.gz",
        [(b"\n" * 1000, 1000)],
        "more than 100,000 consecutive blank lines",
    ),
    "all of it": ("a.txt.gz", [(b" " * (1 << 20), 65)], "unpacks to more than 200 times its size"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_input_is_bounded_before_it_is_parsed(tmp_path, kind):
    name, parts, said = BOMBS[kind]
    file = packed(tmp_path, name, *parts)
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        list(read_prompts(Prompts(path=str(file))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in str(caught.value)
    assert peak < 150 << 20


def test_columns_that_are_not_used_are_not_read(tmp_path, png):
    """What an unused column holds is damaged, so that reading it would fail."""
    file = tmp_path / "set.parquet"
    table = {"caption": ["a cat", "a dog"], "jpg_0": [b"x" * 5000, b"y" * 5000], "image": [png] * 2}
    pq.write_table(
        pa.table(table), file, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray(file.read_bytes())
    place = content.index(b"x" * 5000)
    content[place - 4 : place] = b"\xff\xff\xff\x7f"  # how long the first of them is
    file.write_bytes(content)
    assert [text for _, text in ids_and_texts(file)] == ["a cat", "a dog"]
    assert describe_columns(Prompts(path=str(file))).unused == ("jpg_0", "image")
    with pytest.raises(UserError, match="cannot be read"):
        ids_and_texts(file, keep=["jpg_0"])
