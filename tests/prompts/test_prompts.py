import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.prompts import read as prompts


def read(path, **options):
    return list(prompts.read(Prompts(path=str(path), **options)))


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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "does not exist"),
        ("empty.csv", b"", "holds no prompts"),
        ("head.csv", b"id,caption\n", "holds no prompts"),
        ("wrong.csv", b"a,b\n1,2\n", "no column named like a caption"),
        ("latin.csv", "id,caption\n1,caf\xe9\n".encode("latin-1"), "not UTF-8 (byte 0xe9)"),
        ("blank.csv", b"id,caption\n1,x\n2,\n", "row 3: no text in column 'caption'"),
        ("bad.jsonl", b'{"id": 1, "text": "x"}\n{oops\n', "cannot be read"),
        ("list.json", b'{"captions": []}', "no list of 'annotations'"),
        ("fake.parquet", b"not parquet", "cannot be read"),
        ("set.docx", b"x", "unknown kind '.docx'"),
    ],
)
def test_bad_file_is_told_in_one_line(tmp_path, name, content, said):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_unknown_column_is_told_with_those_there(captions):
    with pytest.raises(UserError, match="no column 'txt'; it has: id, caption"):
        read(captions, text_column="txt")


def test_offset_beyond_the_end_is_told(captions):
    with pytest.raises(UserError, match="holds no prompts after the first 99"):
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


def test_shards_are_whole_batches_but_for_the_last_ones():
    sizes = list(prompts.shard_sizes(10_000, 64, 8))
    assert [size % 8 for size in sizes if size > 4] == [0] * sum(size > 4 for size in sizes)
    assert sum(size for size in sizes if size <= 4) < 1300  # of 10,000


def test_large_sets_begin_with_the_largest_shards():
    assert next(prompts.shard_sizes(1_000_000, 64, 8)) == 64


def test_as_many_prompts_are_counted_as_are_read(tmp_path):
    file = tmp_path / "ten.txt"
    file.write_text("".join(f"picture {i}\n" for i in range(10)))
    for offset, limit in ((0, None), (0, 4), (3, None), (8, 5)):
        spec = Prompts(path=str(file), offset=offset, limit=limit)
        assert prompts.count(spec) == len(list(prompts.read(spec)))
