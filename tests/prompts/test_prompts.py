import gzip
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.output import prompt_plan
from tgate_batch.prompts import reader as prompts
from tgate_batch.prompts.formats import KNOWN
from tgate_batch.storage import Folder


def read(path, **options):
    return list(prompts.read_prompts(Prompts(path=str(path), **options)))


def ids_and_texts(path, **options):
    return [(prompt.id, prompt.text) for prompt in read(path, **options)]


TWO = [("7", "a cat"), ("8", "a dog, asleep")]


def write_csv(file):
    file.write_text('image_id,caption\n7,a cat\n8,"a dog, asleep"\n', encoding="utf-8")


def write_tsv(file):
    file.write_text("id\timage_id\tcaption\n7\t1\ta cat\n8\t1\ta dog, asleep\n", encoding="utf-8")


def write_jsonl(file):
    rows = [{"id": int(i), "prompt": text} for i, text in TWO]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")


def write_parquet(file):
    pq.write_table(pa.table({"key": ["7", "8"], "text": [text for _, text in TWO]}), file)


def write_coco(file):
    rows = [{"id": int(i), "image_id": 1, "caption": text} for i, text in TWO]
    file.write_text(json.dumps({"images": [], "annotations": rows}), encoding="utf-8")


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        ("csv", write_csv),
        ("tsv", write_tsv),
        ("jsonl", write_jsonl),
        ("parquet", write_parquet),
        ("json", write_coco),
    ],
)
def test_every_kind_of_file_gives_the_same_two_prompts(tmp_path, suffix, write):
    file = tmp_path / f"set.{suffix}"
    write(file)
    assert ids_and_texts(file) == TWO


PARTI = """Prompt\tCategory\tChallenge\tNote
bond\tAbstract\tBasic\tBiology-inspired concepts with multiple meanings
"G I G G L E" painted in thick colorful lettering\tIllustrations\tWriting & Symbols\t
Dogs playing poker\tAnimals\tImagination\tDescription of "Dogs Playing Poker"
"""
GENEVAL = """{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a"}
{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a red cow"}
"""


def test_partiprompts_own_file_is_read_without_an_option(tmp_path):
    file = tmp_path / "PartiPrompts.tsv"
    file.write_text(PARTI)
    assert [prompt.text for prompt in read(file)] == [
        "bond",
        '"G I G G L E" painted in thick colorful lettering',
        "Dogs playing poker",
    ]
    found = prompts.describe_columns(Prompts(path=str(file)), by="category")
    assert found.unused == ("Challenge", "Note")
    spec = Prompts(path=str(file))
    assert next(prompts.read_prompts(spec, "category")).category == "Abstract"


def test_genevals_own_file_is_read_without_an_option(tmp_path):
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(GENEVAL)
    assert [prompt.text for prompt in read(file)] == ["a", "a red cow"]
    assert prompts.describe_columns(Prompts(path=str(file))).unused == ("tag", "include")


@pytest.mark.parametrize(
    "line", ['7\t"a cat\n', '"7 a cat"\ttwo\tthree\n', '7\t"a cat" asleep" and\tmore\n']
)
def test_a_quote_in_a_tsv_that_may_mean_two_things_is_refused(tmp_path, line):
    file = tmp_path / "set.tsv"
    file.write_text("id\tcaption\n" + line)
    with pytest.raises(UserError, match=r"row [23]: "):
        read(file)


def test_quoted_cells_of_a_tsv_may_hold_tabs_and_line_breaks(tmp_path):
    file = tmp_path / "set.tsv"
    file.write_text('id\tcaption\n7\t"a\tcat\nasleep"\n8\t"a ""dog"""\n')
    assert ids_and_texts(file) == [("7", "a\tcat\nasleep"), ("8", 'a "dog"')]


@pytest.mark.parametrize(("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl)])
def test_a_compressed_file_is_unpacked_as_it_is_read(tmp_path, suffix, write):
    file = tmp_path / f"set.{suffix}"
    write(file)
    (tmp_path / f"set.{suffix}.GZ").write_bytes(gzip.compress(file.read_bytes()))
    assert ids_and_texts(tmp_path / f"set.{suffix}.GZ") == TWO


def test_a_compressed_file_is_never_unpacked_whole(tmp_path):
    file = tmp_path / "set.txt.gz"
    line = b"a picture of a cat\n"
    file.write_bytes(gzip.compress(line * 1_000_000))
    tracemalloc.start()
    assert len(read(file, limit=10)) == 10
    assert tracemalloc.get_traced_memory()[1] < len(line) * 100_000
    tracemalloc.stop()


@pytest.fixture
def three(tmp_path):
    """Two files of prompts and what is none, in a folder."""
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "b.csv").write_text("ID, Prompt\n1,a cat\n2,a dog\n")
    (folder / "a.jsonl").write_text('{"Caption": "a cow", "id": 3}\n')
    (folder / "notes.md").write_text("# notes")
    (folder / ".hidden.csv").write_text("id,prompt\n9,x\n")
    return folder


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("", "312"),
        ("*.csv", "12"),
        ("*", "no"),
        (["b.csv", "a.jsonl"], "123"),
        (["b.csv", "*.jsonl"], "123"),
    ],
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_files_patterns_and_folders_are_read_in_order(three, paths, found, scheme):
    several = [paths] if isinstance(paths, str) else paths
    spec = Prompts(path=tuple(f"{scheme}{three}/{path}".removesuffix("/") for path in several))
    if found == "no":
        with pytest.raises(UserError, match=r"notes\.md: unknown suffix '\.md'"):
            list(prompts.read_prompts(spec))
        return
    assert "".join(prompt.id for prompt in prompts.read_prompts(spec)) == found
    assert [prompt.source_row for prompt in prompts.read_prompts(spec)] == list(range(len(found)))
    assert prompts.count(spec) == len(found)


def test_limit_and_offset_count_over_all_files(three):
    spec = Prompts(path=str(three), offset=1, limit=1)
    assert [prompt.id for prompt in prompts.read_prompts(spec)] == ["1"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none.csv", "none.csv does not exist (looked in {folder})"),
        ("none/*.csv", "none/*.csv matches no prompt file ({known}; looked in {folder}/none)"),
        ("empty", "empty is a folder without a prompt file ({known}; looked in {folder}/empty)"),
    ],
)
def test_a_refusal_names_the_place_searched(tmp_path, monkeypatch, path, said):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == "prompts file " + said.format(folder=tmp_path, known=KNOWN)


def test_a_name_with_a_patterns_characters_is_a_file_where_there_is_one(tmp_path):
    file = tmp_path / "set[1].txt"
    file.write_text("a cat\n")
    assert [prompt.text for prompt in read(file)] == ["a cat"]


def test_text_file_has_a_prompt_a_line_and_ids_from_place_and_content(tmp_path):
    file = tmp_path / "set.txt"
    file.write_text("a cat\n\na dog\na cat\n", encoding="utf-8")
    found = ids_and_texts(file)
    assert [text for _, text in found] == ["a cat", "a dog", "a cat"]
    assert len({identity for identity, _ in found}) == 3
    assert found == ids_and_texts(file)


def test_made_id_does_not_depend_on_offset(tmp_path):
    file = tmp_path / "set.txt"
    file.write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert read(file, offset=2, limit=1) == read(file)[2:3]


def test_limit_and_offset_cut_the_set(captions):
    assert [p.id for p in read(captions, offset=3, limit=4)] == ["c3", "c4", "c5", "c6"]


def test_named_columns_win_over_guesses(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("id,caption,other\n1,x,y\n", encoding="utf-8")
    assert ids_and_texts(file, text_column="other", id_column="caption") == [("x", "y")]


def test_shards_are_consecutive_and_the_last_is_short(captions):
    shards = list(prompts.shards(read(captions), (4, 4, 4)))
    assert [[p.id for p in shard.prompts] for shard in shards] == [
        ["c0", "c1", "c2", "c3"],
        ["c4", "c5", "c6", "c7"],
        ["c8", "c9"],
    ]


def test_digest_notices_a_changed_caption_and_a_shifted_boundary(tmp_path):
    digests = set()
    for content in ("a1,b\n", "a,1b\n", "a1,c\n"):
        file = tmp_path / "set.csv"
        file.write_text("id,caption\n" + content, encoding="utf-8")
        (shard,) = prompts.shards(read(file), (1,))
        digests.add(shard.digest)
    assert len(digests) == 3


def test_duplicate_ids_are_refused_with_the_first_offenders(tmp_path):
    file = tmp_path / "set.csv"
    rows = [f"{i % 7},caption {i}" for i in range(20)]
    file.write_text("id,caption\n" + "\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"duplicate ids \(0, 1, 2, 3, 4, \.\.\.\)"):
        list(prompts.unique(read(file), str(file)))
    with pytest.raises(UserError, match=r"prompts file s3://bucket/set\.csv has duplicate ids"):
        list(prompts.unique(read(file), "s3://key:secret@bucket/set.csv"))


BAD = [
    ("none.csv", None, "does not exist"),
    ("empty.csv", b"", "has no prompts"),
    ("head.csv", b"id,caption\n", "has no prompts"),
    ("wrong.csv", b"a,b\n1,2\n", "no column named like a caption (a, b)"),
    ("latin.csv", "id,caption\n1,caf\xe9\n".encode("latin-1"), "row 2: not UTF-8 (byte 0xe9)"),
    ("wide.txt", "a cat".encode("utf-16")[:-1], "is not UTF-16-LE. Fix: convert"),
    ("blank.csv", b"id,caption\n1,x\n2,\n", "row 3: no text in column 'caption'"),
    (
        "more.csv",
        b"id,caption\n1,a cat, asleep\n",
        "row 2: the header has 2 columns and this row",
    ),
    ("fewer.csv", b"id,caption\n1,x\n2\n", "row 3: the header has 2 columns and this row 1"),
    ("twice.csv", b"id,caption,id\n1,x,2\n", "two columns 'id'"),
    ("quote.csv", b'id,caption\n1,x\n2,"a\n3,b\n', "row 3: cannot be read: unexpected end of data"),
    ("cell.csv", b'id,caption\n1,"' + b"x" * 140_000, "row 2: cannot be read: a cell of more than"),
    ("long.csv", b"id,caption\n1," + b"x" * 100_001, "row 2: a text of more than 100,000 char"),
    ("nul.csv", b"id,caption\n1,a\0b\n", "row 2: a text with a NUL character"),
    ("nulid.csv", b"id,caption\n1\x002,a\n", r"row 2: an id with the character '\x00'"),
    ("broken.csv", b'id,caption\n"1\n2",a\n', r"row 3: an id with the character '\n'"),
    ("longid.csv", b"id,caption\n" + b"1" * 513 + b",a\n", "row 2: an id of more than 512"),
    ("noid.csv", b"id,caption\n1,a\n,b\n", "row 3: no id in column 'id'. Fix: give every row one"),
    ("packed.csv", b"\x1f\x8b\x08\0", "is compressed by gzip. Fix: give it the suffix .gz"),
    ("sheet.csv", b"PK\x03\x04", "a workbook. Fix: save it as CSV"),
    ("rows.txt", b"PAR1", "is Parquet. Fix: give it the suffix .parquet"),
    ("half.csv.gz", gzip.compress(b"id,caption\n1,x\n")[:-9], "cannot be read: Compressed file"),
    ("plain.csv.gz", b"id,caption\n1,x\n", "cannot be read: Not a gzipped file"),
    ("set.parquet.gz", b"\x1f\x8b\x08\0", "Parquet is compressed internally. Fix: unpack the file"),
    ("set.gz", b"\x1f\x8b\x08\0", "unknown suffix '.gz'"),
    ("set.docx", b"x", "unknown suffix '.docx'"),
    ("nul.txt", b"x\na\0b\n", "row 2: a text with a NUL character"),
    ("long.txt", b"x\n" + b"y" * 100_001, "row 2: a text of more than 100,000 characters"),
    ("bad.jsonl", b'{"text": "x"}\n{oops\n', "row 2: cannot be read as JSON: Expecting property"),
    ("number.jsonl", b'{"text": "x"}\n7\n', "row 2: not a JSON object but 7"),
    ("half.jsonl", b'{"text": "a\\ud800"}', "row 1: a text with half of a surrogate pair"),
    (
        "halfid.jsonl",
        b'{"id": "\\ud800", "text": "a"}',
        "row 1: an id with the character '\\ud800'",
    ),
    (
        "deep.jsonl",
        b'{"text": ' + b"[" * 100_000,
        "row 1: cannot be read as JSON: it is nested",
    ),
    ("digits.jsonl", b'{"id": ' + b"9" * 5000 + b', "text": "a"}', "row 1: cannot be read as JSON"),
    ("names.jsonl", b'{"id": 1, "text": "a", "text": "b"}', "row 1: a name is repeated"),
    ("list.jsonl", b'{"text": ["a"]}', "row 1: a list is not text in column 'text'"),
    ("object.jsonl", b'{"text": {"en": "a"}}', "row 1: an object is not text"),
    ("true.jsonl", b'{"text": true}', "row 1: True is not text"),
    (
        "seven.jsonl",
        b'{"text": 7}',
        "7 is not text in column 'text'. Fix: write it in quotes",
    ),
    ("null.jsonl", b'{"text": "a"}\n{"text": null}', "row 2: no text in column 'text'"),
    ("absent.jsonl", b'{"text": "a"}\n{"txt": "b"}', "row 2: no text in column 'text'"),
    ("idlist.jsonl", b'{"id": [1], "text": "a"}', "row 1: a list is not an id"),
    ("idtrue.jsonl", b'{"id": true, "text": "a"}', "row 1: True is not an id"),
    ("idfloat.jsonl", b'{"id": 1.5, "text": "a"}', "row 1: 1.5 is not an id"),
    ("someids.jsonl", b'{"id": 1, "text": "a"}\n{"text": "b"}', "row 2: no id in column 'id'"),
    (
        "lateid.jsonl",
        b'{"text": "a"}\n{"id": 1, "text": "b"}',
        "row 2: it has an id ('id'), but",
    ),
    ("list.json", b'{"captions": []}', "no list of 'annotations'"),
    ("seven.json", b"[7]", "row 1: not a JSON object but 7"),
    ("cut.json", b'{"annotations": [\n{"id": 1,', "line 2: cannot be read as JSON"),
    ("deep.json", b"[" * 100_000, "cannot be read as JSON: it is nested too deeply"),
    ("twice.json", b'[{"id": 1, "id": 2, "caption": "a"}]', "row 1: a name is repeated"),
    ("fake.parquet", b"not parquet", "cannot be read"),
    ("bytes.parquet", pa.table({"text": [b"abc"]}), "row 1: b'abc' is not text"),
    ("float.parquet", pa.table({"id": [1.0], "text": ["a"]}), "row 1: 1.0 is not an id"),
    ("bool.parquet", pa.table({"text": [True]}), "row 1: True is not text"),
    ("null.parquet", pa.table({"id": ["1", None], "text": ["a", "b"]}), "row 2: no id"),
    (
        "twice.parquet",
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        "two columns 'text'",
    ),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_file_is_told_in_one_line_with_the_row(tmp_path, name, content, said):
    file = tmp_path / name
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert name in str(caught.value)


def test_what_a_reader_may_stumble_over_is_read(tmp_path):
    file = tmp_path / "set.csv"
    file.write_bytes('\ufeffid,caption,,\n a\u200d1 ,"two\nlines: \x1b",,\n'.encode())
    assert ids_and_texts(file) == [("a\u200d1", "two\nlines: \x1b")]
    file = tmp_path / "set.jsonl"
    file.write_text('{"id": 7, "text": "a: b", "more": {"c": [1.5, null]}}')
    assert ids_and_texts(file) == [("7", "a: b")]


def test_damaged_parquet_is_told_with_the_first_row_of_the_damage(tmp_path):
    file = tmp_path / "set.parquet"
    rows = [f"caption {number}" for number in range(3000)]
    pq.write_table(pa.table({"text": rows}), file, row_group_size=2048, write_page_checksum=True)
    content = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"row 2049: cannot be read \(in or after it\)"):
        read(file)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path, kind):
    file = tmp_path / "set.txt"
    {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "device": lambda: None}[kind]()
    if kind == "device":
        file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"is not a regular file|is a folder"):
        read(file)
    with pytest.raises(UserError, match=r"is not a regular file|is a folder"):
        prompt_plan.plan_shards(Folder(str(tmp_path / "out")), Prompts(path=str(file)), ledger=None)


def test_picture_of_a_row_that_cannot_be_read_is_told(tmp_path):
    file = tmp_path / "set.jsonl"
    os.mkfifo(tmp_path / "pipe")
    for value, said in [
        ('"no.png"', "image 'no.png' does not exist"),
        ('"pipe"', "image 'pipe' is not a regular file"),
        ('"a\\u0000b"', r"image 'a\x00b' contains a character"),
        ("7", "no image in column 'image'"),
    ]:
        file.write_text('{"image": %s, "text": "a"}' % value)  # noqa: UP031
        with pytest.raises(UserError) as caught:
            read(file, image_column="image")
        assert f"row 1: {said}" in str(caught.value)


def test_prompts_and_their_pictures_are_read_from_a_uri(tmp_path, monkeypatch, png):
    (tmp_path / "set.csv").write_text("id,caption,image\n1,a cat,pictures/cat.png\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(png)
    (prompt,) = read(f"file://{tmp_path}/set.csv", image_column="image")
    assert (prompt.text, prompt.image) == ("a cat", png)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/set.csv", image_column="image") == [prompt]


def test_name_that_no_file_can_have_is_told():
    with pytest.raises(UserError, match=r"prompts file a\\x00b\.csv contains a character"):
        read("a\0b.csv")


def test_missing_uri_is_told_without_its_password():
    with pytest.raises(UserError) as caught:
        read("file://user:secret@/no/such.csv")
    assert "secret" not in str(caught.value)


def test_unknown_column_is_told_with_those_there(captions):
    with pytest.raises(UserError, match="no column 'txt'; it has: id, caption"):
        read(captions, text_column="txt")


def test_offset_beyond_the_end_is_told(captions):
    with pytest.raises(UserError, match="has no prompts after the first 99"):
        read(captions, offset=99)


def test_reading_streams_and_stops_at_the_limit(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("id,caption\n1,x\n2,\n", encoding="utf-8")
    assert ids_and_texts(file, limit=1) == [("1", "x")]


@pytest.mark.parametrize(("left", "largest", "batch"), [(10_000, 64, 8), (600, 64, 5), (7, 64, 8)])
def test_shards_are_cut_ever_smaller_and_hold_all(left, largest, batch):
    sizes = list(prompts.shard_sizes(left, largest, batch))
    assert sum(sizes) == left
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert max(sizes) <= largest


def test_shards_are_whole_batches():
    sizes = list(prompts.shard_sizes(10_003, 64, 8))
    assert [size % 8 for size in sizes] == [0] * (len(sizes) - 1) + [3]


def test_large_sets_begin_with_the_largest_shards():
    assert next(prompts.shard_sizes(1_000_000, 64, 8)) == 64


def test_as_many_prompts_are_counted_as_are_read(tmp_path):
    file = tmp_path / "ten.txt"
    file.write_text("".join(f"picture {i}\n" for i in range(10)))
    for offset, limit in ((0, None), (0, 4), (3, None), (8, 5)):
        spec = Prompts(path=str(file), offset=offset, limit=limit)
        assert prompts.count(spec) == len(list(prompts.read_prompts(spec)))
