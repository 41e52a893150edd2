import io

import numpy as np
import pytest
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.metrics.frechet import Statistics
from tgate_batch.metrics.reservoir import Reservoir
from tgate_batch.output.parquet import write_records
from tgate_batch.records import ImageRecord
from tgate_batch.score.reference import drawn_reference, load_reference, reference_of
from tgate_batch.storage import Folder


class MeanColour:
    """Three features: the mean of each channel."""

    name, dimensions, label, note, sha256 = "mean-colour", 3, "FD-mean-colour", None, "0" * 64

    def __call__(self, images):
        rows = [np.asarray(image).mean(axis=(0, 1)) for image in images]
        return np.array(rows, np.float32).reshape(-1, 3)


def encoded(seed, size=(6, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def colours(contents):
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    return MeanColour()(images)


@pytest.fixture
def contents():
    return [encoded(n, size=(6 + n, 5)) for n in range(7)]


@pytest.fixture
def picture_folder(tmp_path, contents):
    folder = tmp_path / "pictures"
    for n, content in enumerate(contents):
        file = folder / f"part{n % 2}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def write_shard(folder, name, contents, first=0):
    records = [
        ImageRecord(str(first + n), 0, "a", seed=n, status="ok", image=content)
        for n, content in enumerate(contents)
    ]
    records.append(ImageRecord("failed", 0, "a", seed=0, status="error", error="out of memory"))
    write_records(Folder(str(folder)), name, "m", "a", records, "identity")


def test_a_folder_of_pictures_of_mixed_sizes_is_a_reference(picture_folder, contents):
    reference = load_reference(str(picture_folder), MeanColour(), batch_size=3)
    expected = Statistics.of(colours(contents))
    assert reference.statistics.count == 7
    np.testing.assert_allclose(reference.statistics.covariance, expected.covariance, rtol=1e-9)
    assert sorted(map(tuple, reference.features)) == sorted(map(tuple, colours(contents)))


def test_rows_of_a_run_are_a_reference_and_failed_rows_are_passed_over(tmp_path, contents):
    write_shard(tmp_path, "shard-00000.parquet", contents[:4])
    write_shard(tmp_path, "shard-00001.parquet", contents[4:], first=4)
    reference = load_reference(str(tmp_path), MeanColour(), batch_size=2)
    np.testing.assert_allclose(reference.statistics.mean, colours(contents).mean(axis=0), rtol=1e-6)
    assert reference.statistics.count == 7


def test_arms_are_not_mixed_into_one_reference(tmp_path, contents):
    for arm in ("a", "b"):
        write_shard(tmp_path, f"arm={arm}/shard-00000.parquet", contents)
    with pytest.raises(UserError, match="several sets"):
        load_reference(str(tmp_path), MeanColour())
    assert load_reference(str(tmp_path / "arm=a"), MeanColour()).statistics.count == 7


def test_statistics_of_pytorch_fid_are_a_reference(tmp_path, contents):
    Statistics.of(colours(contents)).save(tmp_path / "s.npz")
    reference = load_reference(str(tmp_path / "s.npz"), MeanColour())
    assert reference.statistics.count == 7
    assert reference.features is None
    assert len(reference.sha256) == 64


def test_statistics_of_another_extractor_are_refused(tmp_path):
    Statistics.of(np.eye(4)).save(tmp_path / "s.npz")
    with pytest.raises(UserError, match="4 dimensions, but mean-colour makes 3"):
        load_reference(str(tmp_path / "s.npz"), MeanColour())


def test_the_hash_follows_content_and_not_batches(picture_folder):
    one, other = (load_reference(str(picture_folder), MeanColour(), size) for size in (2, 50))
    assert one.sha256 == other.sha256
    (picture_folder / "part0" / "0.png").write_bytes(encoded(99))
    assert load_reference(str(picture_folder), MeanColour()).sha256 != one.sha256


def test_broken_pictures_are_listed_and_kept_out(picture_folder):
    Image.new("RGB", (4, 4)).save(picture_folder / "black.png")
    reference = load_reference(str(picture_folder), MeanColour())
    assert reference.broken == ("black.png: all black",)
    assert reference.statistics.count == 7


def test_a_reference_of_broken_pictures_alone_is_none():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    with pytest.raises(UserError, match="reference dark: there are no usable images"):
        reference_of("dark", [("1", stream.getvalue())] * 3, MeanColour())


def test_one_picture_is_too_few():
    with pytest.raises(UserError, match="two are the least"):
        reference_of("lonely", [("1", encoded(1))], MeanColour())


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("x.png", b"\x89PNG cut off", "x.png cannot be read as a picture"),
        ("x.parquet", b"PAR1 cut off", "x.parquet cannot be read"),
        ("x.txt", b"", "no folder with pictures"),
    ],
)
def test_a_reference_that_cannot_be_read_says_so_in_one_line(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as caught:
        load_reference(str(tmp_path), MeanColour())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["nowhere", "nowhere.npz", "/nowhere/at/all.npz"])
def test_a_reference_that_is_not_there_says_so_in_one_line(spec):
    with pytest.raises(UserError, match=spec) as caught:
        load_reference(spec, MeanColour())
    assert "\n" not in str(caught.value)


def test_drawn_pictures_are_a_reference():
    captions = ["at the top a large red circle on a white background"] * 2
    reference = drawn_reference(captions, MeanColour(), each=3)
    assert (reference.name, reference.statistics.count) == ("drawn", 6)
    with pytest.raises(UserError, match="reference drawn: 'a dog' is outside"):
        drawn_reference(["a dog"], MeanColour())


def test_a_sample_does_not_depend_on_batches():
    rows = np.arange(1000.0).reshape(500, 2)
    samples = []
    for size in (7, 500):
        sample = Reservoir(20)
        for start in range(0, 500, size):
            sample.add(rows[start : start + size])
        samples.append(sample.rows)
    np.testing.assert_array_equal(*samples)
    assert samples[0].shape == (20, 2)


def test_a_sample_larger_than_the_set_is_the_set():
    rows = np.arange(10.0).reshape(5, 2)
    sample = Reservoir(20)
    sample.add(rows)
    np.testing.assert_array_equal(sample.rows, rows)


def test_every_row_is_as_likely_to_be_in_a_sample():
    hits = np.zeros(10)
    for seed in range(2000):
        sample = Reservoir(3, seed)
        for row in np.arange(10):
            sample.add(np.array([[row]]))
        hits[sample.rows[:, 0]] += 1
    np.testing.assert_allclose(hits / 2000, 0.3, atol=0.04)
