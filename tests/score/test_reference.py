"""A reference's file: made of images in parts, resumed, read, and refused."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance
from pytorch_fid.inception import InceptionV3

from benchmarks.statistics import write_random_inception
from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.execute.reference import prepare_reference
from tgate_batch.metrics import kid, precision_recall
from tgate_batch.metrics.features import EfficientNetLite0, Inception
from tgate_batch.metrics.frechet import Statistics, frechet_distance
from tgate_batch.metrics.sampling import NamedSample
from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.score import image_sources, reference_file
from tgate_batch.score.reference import load_reference

HERE = Path(__file__).parent


class MeanColour:
    """Three features: the mean of each channel. Fails once where it is told to."""

    name, dimensions, label, note, sha256 = "mean-colour", 3, "FD-mean-colour", None, "a" * 64
    recipe = "No resizing."
    seen: ClassVar[list[int]] = []  # images, call by call
    fails_at: ClassVar[int | None] = None

    def __init__(self, path=None, device="cpu"):
        pass

    def __call__(self, images):
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        self.seen.append(len(images))
        rows = [np.asarray(image).mean(axis=(0, 1)) for image in images]
        return np.array(rows, np.float32).reshape(-1, 3)


class Shifting(MeanColour):
    """Other weights each time it is loaded."""

    loaded: ClassVar[int] = 0

    def __init__(self, path=None, device="cpu"):
        Shifting.loaded += 1
        self.sha256 = f"{Shifting.loaded}".ljust(64, "0")


class OtherWeights(MeanColour):
    sha256 = "b" * 64


class Newer(MeanColour):
    version = 2


class OtherNetwork(MeanColour):
    name = "other"


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(MeanColour, "seen", [])
    monkeypatch.setattr(MeanColour, "fails_at", None)


def encoded(seed, size=(6, 5)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def contents():
    return [encoded(n, size=(6 + n, 5)) for n in range(7)]


@pytest.fixture
def pictures(tmp_path, contents):
    folder = tmp_path / "pictures"
    for n, content in enumerate(contents):
        file = folder / f"part{n % 2}" / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def colours(contents):
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    return MeanColour()(images)


def configured(tmp_path, **score):
    score = {"extractor": f"{__name__}:MeanColour", **score}
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": "captions.txt"},
            "arms": {"baseline": {}},
            "workers": {"executor": "local"},
            "score": score,
            "output": str(tmp_path / "out"),
        }
    )


def made(tmp_path, source, name="made.npz", **score) -> bytes:
    file = tmp_path / name
    assert workflow.reference(configured(tmp_path, **score), str(source), str(file)) == 0
    assert not Path(layout.parts(str(file))).exists()
    return file.read_bytes()


def about(content: bytes) -> dict:
    with np.load(io.BytesIO(content)) as archive:
        return json.loads(str(archive["about"]))


def test_file_has_statistics_sample_and_what_it_was_made_of(tmp_path, pictures, contents):
    Image.new("RGB", (4, 4)).save(pictures / "black.png")
    content = made(tmp_path, pictures)
    reference = load_reference(str(tmp_path / "made.npz"), MeanColour())
    expected = Statistics.of(colours(contents))
    assert reference.statistics.count == 7
    np.testing.assert_allclose(reference.statistics.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(reference.statistics.covariance, expected.covariance, rtol=1e-6)
    assert sorted(map(tuple, reference.sample)) == sorted(map(tuple, colours(contents)))
    assert reference.sample.dtype == np.float32
    assert reference.within == pytest.approx(kid.mean_of_pairs(reference.sample))
    assert (reference.radii == precision_recall.radii(reference.sample)).all()
    assert reference.sha256 == hashlib.sha256(content).hexdigest()
    files = sorted(pictures.rglob("*.png"))
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(pictures)}\n"
        for file in files
    ]
    expected = {
        "extractor": "mean-colour",
        "version": 1,
        "weights": "a" * 64,
        "label": "FD-mean-colour",
        "recipe": "No resizing.",
        "pictures": 7,
        "broken": 1,
        "broken_named": ["black.png: all black"],
        "sha256": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest(),
        "source": str(pictures),
    }
    assert {key: reference.about[key] for key in expected} == expected
    assert reference.about.keys() - expected.keys() == {"tgate_batch"}


def test_same_pictures_give_the_same_bytes_in_any_order_and_at_any_time(
    tmp_path, pictures, contents
):
    first = made(tmp_path, pictures, "first.npz")
    for file in sorted(pictures.rglob("*.png"), reverse=True):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert made(tmp_path, pictures, "second.npz") == first
    (pictures / "part0" / "0.png").write_bytes(encoded(99))
    assert about(made(tmp_path, pictures))["sha256"] != about(first)["sha256"]


def test_parts_change_last_bits_alone(tmp_path, pictures, monkeypatch):
    whole = made(tmp_path, pictures, "whole.npz")
    monkeypatch.setattr(image_sources, "PART", 2)
    cut = made(tmp_path, pictures, "cut.npz")
    assert about(cut) == about(whole)
    one, other = (np.load(io.BytesIO(content)) for content in (whole, cut))
    np.testing.assert_array_equal(one["sample"], other["sample"])
    np.testing.assert_allclose(one["sigma"], other["sigma"], rtol=1e-12)


def test_stopped_job_goes_on_with_the_same_bytes_and_extracts_nothing_twice(
    tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr(image_sources, "PART", 2)
    whole = made(tmp_path, pictures, "whole.npz")
    assert MeanColour.seen == [2, 2, 2, 1]
    MeanColour.seen.clear()
    monkeypatch.setattr(MeanColour, "fails_at", 2)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, pictures, "cut.npz")
    assert not (tmp_path / "cut.npz").exists()
    assert len(list((tmp_path / "cut.npz.parts").rglob("*.parquet"))) == 2
    monkeypatch.setattr(MeanColour, "fails_at", None)
    assert made(tmp_path, pictures, "cut.npz") == whole
    assert MeanColour.seen == [2, 2, 2, 1]


@pytest.mark.parametrize("change", ["pictures", "weights", "damage"])
def test_parts_of_other_pictures_or_weights_and_damaged_ones_are_made_again(
    tmp_path, pictures, monkeypatch, change
):
    monkeypatch.setattr(image_sources, "PART", 2)
    monkeypatch.setattr(MeanColour, "fails_at", 3)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, pictures)
    monkeypatch.setattr(MeanColour, "fails_at", None)
    MeanColour.seen.clear()
    score, again = {}, [2, 2, 2, 1]
    if change == "pictures":
        (pictures / "part0" / "0.png").write_bytes(encoded(99, (9, 9)))
    elif change == "weights":
        score["extractor"] = f"{__name__}:OtherWeights"
    else:
        part = layout.part(str(tmp_path / "made.npz"), "mean-colour", 1)
        Path(part).write_bytes(b"PAR1")
        again = [2, 1]
    resumed = made(tmp_path, pictures, **score)
    assert MeanColour.seen == again
    assert made(tmp_path, pictures, "fresh.npz", **score) == resumed


def test_every_extractor_has_a_file_of_its_own(tmp_path, pictures):
    names = (f"{__name__}:MeanColour", f"{__name__}:OtherNetwork")
    spec = str(tmp_path / "{extractor}.npz")
    workflow.reference(configured(tmp_path, extractor=names, reference=spec), str(pictures))
    found = {file.name: about(file.read_bytes())["extractor"] for file in tmp_path.glob("*.npz")}
    assert found == {
        f"{__name__}-MeanColour.npz": "mean-colour",
        f"{__name__}-OtherNetwork.npz": "other",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A torch hub folder with random Inception weights."""
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    weights.parent.mkdir(parents=True)
    write_random_inception(weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return weights


def test_distance_of_two_files_is_that_of_pytorch_fid(tmp_path, contents):
    ours, theirs = [], []
    for name, part in (("a", contents[:4]), ("b", contents[3:])):
        (tmp_path / name).mkdir()
        for n, content in enumerate(part):
            (tmp_path / name / f"{n}.png").write_bytes(content)
        made(tmp_path, tmp_path / name, f"{name}.npz")
        ours.append(load_reference(str(tmp_path / f"{name}.npz"), MeanColour()).statistics)
        features = colours(part)
        theirs += [features.mean(axis=0), np.cov(features, rowvar=False)]
    expected = calculate_frechet_distance(*theirs)
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow  # SciPy's root of a matrix of 2048 x 2048 takes half a minute
def test_fid_from_files_of_inception_is_that_of_pytorch_fid(tmp_path, hub):
    theirs, ours = [], []
    network = InceptionV3([3]).eval()
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for n in range(6):
            (tmp_path / name / f"{n}.png").write_bytes(encoded(seed * 10 + n, (32 * seed, 40)))
        made(tmp_path, tmp_path / name, f"{name}.npz", extractor="inception")
        ours.append(load_reference(str(tmp_path / f"{name}.npz"), Inception(hub)).statistics)
        files = sorted((tmp_path / name).glob("*.png"))
        theirs.append(calculate_activation_statistics(files, network, batch_size=6, num_workers=0))
    expected = calculate_frechet_distance(*theirs[0], *theirs[1])
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    read = [np.load(tmp_path / f"{name}.npz") for name in "ab"]  # as pytorch-fid reads it
    from_files = calculate_frechet_distance(
        read[0]["mu"], read[0]["sigma"], read[1]["mu"], read[1]["sigma"]
    )
    assert from_files == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_recipes_are_sentences():
    for kind in (Inception, EfficientNetLite0):
        assert kind.recipe.endswith(".")


def test_statistics_of_pytorch_fid_are_a_reference(tmp_path, contents):
    Statistics.of(colours(contents)).save(tmp_path / "s.npz")
    reference = load_reference(str(tmp_path / "s.npz"), MeanColour())
    assert reference.statistics.count == 7
    assert reference.sample is None
    assert reference.about == {}
    assert len(reference.sha256) == 64


def test_statistics_of_another_extractor_are_refused(tmp_path):
    Statistics.of(np.eye(4)).save(tmp_path / "s.npz")
    with pytest.raises(UserError, match="4 dimensions, but mean-colour has 3"):
        load_reference(str(tmp_path / "s.npz"), MeanColour())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (OtherWeights, "mean-colour version 1 .weights aaaaaaaa.*version 1 .weights bbbbbbbb"),
        (Newer, "mean-colour version 1 .*mean-colour version 2 "),
        (OtherNetwork, "made with mean-colour .*measured with other "),
    ],
)
def test_file_of_another_extractor_is_refused_and_both_are_named(tmp_path, pictures, kind, said):
    made(tmp_path, pictures)
    with pytest.raises(UserError, match=said) as caught:
        load_reference(str(tmp_path / "made.npz"), kind())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["nowhere.npz", "/nowhere/at/all.npz"])
def test_a_reference_that_is_not_there_says_so_in_one_line(spec):
    with pytest.raises(UserError, match=spec) as caught:
        load_reference(spec, MeanColour())
    assert "\n" not in str(caught.value)


def dark(folder, kept):
    files = sorted(folder.rglob("*.png"))
    for file in files[kept:]:
        Image.new("RGB", (4, 4)).save(file)


@pytest.mark.parametrize(
    ("spoil", "to", "score", "said"),
    [
        (lambda f: (f / "x.png").write_bytes(b"\x89PNG"), "x.npz", {}, "x.png cannot be read as"),
        (lambda f: dark(f, 0), "x.npz", {}, "no usable images"),
        (lambda f: dark(f, 1), "x.npz", {}, "needs at least two usable images"),
        (None, None, {}, "score.reference is missing. Fix: set it, or give --to"),
        (None, None, {"reference": "drawn"}, "give --to FILE.npz"),
        (None, "x.npz", {"extractor": ("inception", "efficientnet-lite0")}, "put {extractor} into"),
        (None, "x.npz", {"extractor": "inceptoin"}, "unknown extractor 'inceptoin'"),
        (None, "pictures/part0/0.png/x.npz", {}, "cannot be written"),
        (None, "here.npz", {}, "it is a folder"),
        (None, "x.npz", {"extractor": f"{__name__}:Shifting"}, "has other weights at"),
    ],
)
def test_what_makes_no_reference_is_told_in_one_line(tmp_path, pictures, spoil, to, score, said):
    (tmp_path / "here.npz").mkdir()
    if spoil is not None:
        spoil(pictures)
    with pytest.raises(UserError) as caught:
        workflow.reference(configured(tmp_path, **score), str(pictures), to and str(tmp_path / to))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
    """A run of five drawable captions, not rendered."""
    caption = "at the top a large red circle on a white background"
    (tmp_path / "captions.txt").write_text(f"{caption}\n" * 5)
    settings = configured(tmp_path, reference="drawn").model_dump(mode="json")
    settings["prompts"]["path"] = str(tmp_path / "captions.txt")
    prepared = runs.prepare(config.parse(settings))
    runs.begin_run(prepared)
    return prepared


def with_reference(run, reference):
    score = run.config.score.model_copy(update={"reference": reference})
    changed = run.config.model_copy(update={"score": score})
    return runs.Run(changed, run.folder, run.shards, run.ledger)


def prepared(run):
    return prepare_reference(run, run.config.score.extractor[0], MeanColour())


def test_run_draws_its_reference_once_and_keeps_it(run):
    first, again = prepared(run), prepared(run)
    assert MeanColour.seen == [5]
    assert (first.name, first.statistics.count, len(first.sample)) == ("drawn", 5, 5)
    assert first.sha256 == again.sha256 == first.about["sha256"]
    assert run.folder.exists(layout.reference("mean-colour"))
    assert [n for n in run.folder.names("scores") if n.endswith(".parquet")] == []


def test_reference_of_a_run_is_made_again_when_its_pictures_change(run, pictures):
    prepared(run)
    of_pictures = with_reference(run, str(pictures))
    assert [prepared(of_pictures).statistics.count for _ in range(2)] == [7, 7]
    (pictures / "part0" / "0.png").write_bytes(encoded(99, (9, 9)))
    prepared(of_pictures)
    run.folder.write(layout.reference("mean-colour"), b"PK damaged")
    assert prepared(of_pictures).name == str(pictures)
    assert MeanColour.seen == [5, 7, 7, 7]


def test_file_is_read_and_not_copied_into_the_run(run, tmp_path, pictures):
    made(tmp_path, pictures, "mean-colour.npz")
    (tmp_path / "mean-colour.npz").rename(tmp_path / f"{__name__}-MeanColour.npz")
    reference = prepared(with_reference(run, str(tmp_path / "{extractor}.npz")))
    assert reference.statistics.count == 7
    assert not run.folder.exists(layout.reference("mean-colour"))


def test_run_without_a_reference_has_none(run):
    assert prepared(with_reference(run, None)) is None


def test_named_sample_is_that_of_the_smallest_hashes_in_any_order(monkeypatch):
    names = [str(n) for n in range(500)]
    rows = np.arange(1000.0).reshape(500, 2)
    samples = []
    for order, size in ((np.arange(500), 7), (np.arange(500)[::-1], 500), (np.arange(500), 45)):
        sample = NamedSample(20)
        for start in range(0, 500, size):
            chosen = order[start : start + size]
            sample.add([names[n] for n in chosen], rows[chosen])
        samples.append(sample.rows)
    hashes = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    expected = rows[sorted(range(500), key=hashes.__getitem__)[:20]]
    for sample in samples:
        np.testing.assert_array_equal(sample, expected)


def test_named_sample_larger_than_the_set_is_the_set():
    sample = NamedSample(reference_file.SAMPLE)
    sample.add(["a", "b"], np.eye(2))
    assert len(sample.rows) == 2


@pytest.fixture
def truncated(pictures):
    file = pictures / "part1" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    return "part1/3.png"


def test_one_truncated_image_is_an_error_that_names_it_and_the_key(tmp_path, pictures, truncated):
    with pytest.raises(UserError, match=rf"{truncated} cannot .*score.reference_skip_unreadable"):
        made(tmp_path, pictures)


def test_truncated_images_are_passed_over_and_counted_on_demand(
    tmp_path, pictures, contents, truncated, capsys
):
    content = made(tmp_path, pictures, reference_skip_unreadable=True)
    assert "6 images, 1 skipped as broken or unreadable (first: part1/3.png: cannot be" in (
        capsys.readouterr().out
    )
    assert about(content)["pictures"] == 6
    (tmp_path / pictures.name / truncated).unlink()
    whole = made(tmp_path, pictures, "whole.npz")
    for key in ("mu", "sigma", "sample"):
        one, other = (np.load(io.BytesIO(held))[key] for held in (content, whole))
        assert np.array_equal(one, other)


def test_a_reference_made_without_unreadable_images_is_not_taken_where_they_count(
    run, pictures, truncated
):
    def of(skip):
        score = {"reference": str(pictures), "reference_skip_unreadable": skip}
        return replace(
            run,
            config=run.config.model_copy(
                update={"score": run.config.score.model_copy(update=score)}
            ),
        )

    name = run.config.score.extractor[0]
    assert prepare_reference(of(True), name, MeanColour()).statistics.count == 6
    with pytest.raises(UserError, match=truncated):
        prepare_reference(of(False), name, MeanColour())
