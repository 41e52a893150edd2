"""Every kind of source gives the same images, in an order that no disk and no archive decides."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tgate_batch import config
from tgate_batch.demo.scenes import draw
from tgate_batch.errors import UserError
from tgate_batch.output import run as runs
from tgate_batch.output.parquet import write_records
from tgate_batch.records import ImageRecord
from tgate_batch.score import image_sources
from tgate_batch.storage import Folder


def encoded(seed, size=(6, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PICTURES = {f"{'ab'[n % 2]}/{n}.png": encoded(n, (6 + n, 5)) for n in range(7)}


def pictures(source) -> list:
    """All (name, bytes) of a source whose parts were sent to a worker and back."""
    parts = pickle.loads(pickle.dumps(source.parts))  # noqa: S301  our own bytes
    assert sum(map(len, parts)) == len(source)
    return [picture for part in parts for picture in part.images()]


def in_a_folder(tmp_path, named) -> Path:
    for name, content in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes.md").write_text("not an image")
    return tmp_path


def in_a_tar(tmp_path, named) -> Path:
    with tarfile.open(tmp_path / "pictures.tar", "w") as tar:
        for name, content in named.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path / "pictures.tar"


def in_a_list(tmp_path, named) -> Path:
    in_a_folder(tmp_path, named)
    (tmp_path / "list.txt").write_text("\n".join(named) + "\n\n")
    return tmp_path / "list.txt"


def in_rows(kind):
    def write(tmp_path, named) -> Path:
        rows = [
            {"image": content if kind == "binary" else {"bytes": content, "path": name}}
            for name, content in named.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=3)
        return tmp_path / "x.parquet" if kind == "binary" else tmp_path

    return write


@pytest.mark.parametrize("write", [in_a_folder, in_a_tar, in_a_list, in_rows("struct")])
@pytest.mark.parametrize("size", [2, 256])
def test_every_kind_of_source_gives_the_same_pictures(tmp_path, monkeypatch, write, size):
    monkeypatch.setattr(image_sources, "PART", size)
    named = dict(sorted(PICTURES.items()))
    source = image_sources.open_source(str(write(tmp_path, named)))
    assert pictures(source) == list(named.items())
    assert {len(part) for part in source.parts[:-1]} <= {size}


@pytest.mark.parametrize("write", [in_a_folder, in_a_tar, in_a_list])
def test_order_of_files_does_not_matter(tmp_path, write):
    backwards = dict(reversed(PICTURES.items()))
    assert pictures(image_sources.open_source(str(write(tmp_path, backwards)))) == sorted(
        PICTURES.items()
    )


def shards(folder, named, hidden=()) -> Path:
    """Two tars of the images, as webdataset and img2dataset write them."""
    folder.mkdir(exist_ok=True)
    cut = len(named) // 2
    items = [*named.items()]
    for number, chosen in enumerate((items[:cut], items[cut:])):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for name, content in [*chosen, *((one, b"not an image") for one in hidden)]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return folder


HIDDEN = ("._0.png", "__MACOSX/a/._0.png", ".thumbs/x.png", ".DS_Store")


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/0000[01].tar"])
def test_a_folder_and_a_pattern_of_tar_shards_are_references(tmp_path, pattern):
    folder = shards(tmp_path / "x", PICTURES, HIDDEN)
    read = pictures(image_sources.open_source(f"{folder}{pattern}"))
    assert sorted(content for _, content in read) == sorted(PICTURES.values())
    assert {name.partition("/")[0] for name, _ in read} == {"00000.tar", "00001.tar"}
    assert {name.partition("/")[2] for name, _ in read} == set(PICTURES)


def test_tables_that_describe_tar_shards_are_no_pictures(tmp_path):
    folder = shards(tmp_path / "x", PICTURES)
    pq.write_table(pa.table({"key": ["0"], "caption": ["a"]}), folder / "00000.parquet")
    assert len(image_sources.open_source(str(folder))) == len(PICTURES)


def test_a_pattern_of_pictures_takes_the_files_that_match(tmp_path):
    for name, content in PICTURES.items():
        (tmp_path / name.replace("/", "-")).write_bytes(content)
    read = pictures(image_sources.open_source(f"{tmp_path}/a-*.png"))
    assert [name for name, _ in read] == ["a-0.png", "a-2.png", "a-4.png", "a-6.png"]


@pytest.mark.parametrize("write", [in_a_folder, in_a_tar])
def test_hidden_files_and_those_of_a_mac_are_no_pictures(tmp_path, write):
    named = dict(sorted(PICTURES.items()))
    place = write(tmp_path, named | dict.fromkeys(HIDDEN, b"not an image"))
    assert pictures(image_sources.open_source(str(place))) == list(named.items())


def test_plain_bytes_are_named_by_file_and_row(tmp_path):
    found = pictures(image_sources.open_source(str(in_rows("binary")(tmp_path, PICTURES))))
    assert found == [(f"x.parquet#{n}", content) for n, content in enumerate(PICTURES.values())]


def test_rows_of_a_run_have_its_names_and_failed_rows_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sources, "PART", 3)
    contents = list(PICTURES.values())
    for shard in range(2):
        records = [
            ImageRecord(f"p{n}", 1, "a", seed=n, status="ok", image=contents[n])
            for n in range(shard * 3, shard * 3 + 3)
        ]
        records.append(ImageRecord(f"f{shard}", 0, "a", seed=0, status="error", error="why"))
        name = f"shard-{shard}.parquet"
        write_records(Folder(str(tmp_path)), name, "m", "a", records, "identity")
    source = image_sources.open_source(str(tmp_path))
    assert pictures(source) == [(f"p{n}/1", contents[n]) for n in range(6)]
    assert [len(part) for part in source.parts] == [3, 3, 2]


def test_sets_are_not_mixed(tmp_path):
    for arm in ("a", "b"):
        (tmp_path / arm).mkdir()
        in_rows("struct")(tmp_path / arm, PICTURES)
    with pytest.raises(UserError, match="several sets"):
        image_sources.open_source(str(tmp_path))
    assert len(image_sources.open_source(f"{tmp_path}/a/")) == 7


def test_listing_follows_sizes_and_times(tmp_path):
    in_a_folder(tmp_path, PICTURES)
    before = image_sources.open_source(str(tmp_path)).listing
    assert image_sources.open_source(str(tmp_path)).listing == before
    (tmp_path / "a" / "0.png").write_bytes(encoded(0, (9, 9)))
    assert image_sources.open_source(str(tmp_path)).listing != before


def drawable(tmp_path, captions):
    (tmp_path / "captions.txt").write_text("\n".join(captions) + "\n")
    settings = {
        "models": ["demo"],
        "prompts": {"path": str(tmp_path / "captions.txt"), "shard_size": 4},
        "arms": {"baseline": {}},
        "output": str(tmp_path / "out"),
    }
    run = runs.prepare(config.parse(settings))
    runs.begin_run(run)
    return run


@pytest.mark.parametrize("size", [3, 256])
def test_captions_are_drawn_once_each_with_their_number_as_seed(tmp_path, monkeypatch, size):
    monkeypatch.setattr(image_sources, "PART", size)
    captions = [f"in the middle a {size} red cross on a pink background" for size in ("small",) * 3]
    captions += ["at the top a large red circle on a white background"] * 7
    run = drawable(tmp_path, captions)
    source = image_sources.demo_images(run.folder, run.shards)
    found = pictures(source)
    assert [name for name, _ in found] == [f"{n} {text}" for n, text in enumerate(captions)]
    for number, (_, content) in enumerate(found):
        drawn = draw(captions[number], number)
        assert Image.open(io.BytesIO(content)).tobytes() == drawn.tobytes()


def test_captions_outside_the_grammar_are_no_source(tmp_path):
    run = drawable(tmp_path, ["at the top a large red circle on a white background", "a dog"])
    assert image_sources.demo_images(run.folder, run.shards) is None


def cut_tar(tmp_path):
    file = in_a_tar(tmp_path, PICTURES)
    file.write_bytes(b"no tar" * 100)
    return file


def write(name, content=b""):
    def written(tmp_path):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return written


def other_column(tmp_path):
    pq.write_table(pa.table({"image": ["a.png"]}), tmp_path / "x.parquet")
    return tmp_path


def path_alone(tmp_path):
    table = pa.Table.from_pylist(
        [{"image": {"bytes": None, "path": "a.png"}}],
        schema=pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]),
    )
    pq.write_table(table, tmp_path / "x.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda tmp_path: tmp_path, "has no images"),
        (lambda tmp_path: tmp_path / "nowhere", "has no images"),
        (write("x.tar.gz"), "unpack it"),
        (write("x.csv"), "is not a folder and not .tar, .parquet, .txt"),
        (write("x.txt"), "has no images"),
        (write("x.txt", b"a.png\n"), "lists a.png, which does not exist"),
        (write("x.txt", b"x.txt\nx.txt\n"), "lists x.txt twice"),
        (write("x.txt", b"\xff"), "not UTF-8"),
        (write("x.parquet", b"PAR1 cut off"), "x.parquet cannot be read"),
        (cut_tar, "pictures.tar cannot be read"),
        (other_column, "x.parquet has no column `image` with the bytes of images"),
        (path_alone, "x.parquet#0 has the path 'a.png' of an image, not its bytes"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, make, said):
    with pytest.raises(UserError) as caught:
        pictures(image_sources.open_source(str(make(tmp_path))))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
