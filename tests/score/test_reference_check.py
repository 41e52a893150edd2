"""References that cannot work are told before anything is rendered, each in one line."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.metrics.features import EfficientNetLite0, UnloadedExtractor
from tgate_batch.score.reference_check import check_references


def encoded(seed=0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def configured(tmp_path, reference, **score):
    (tmp_path / "captions.txt").write_text("a tent\na kite\n")
    return config.parse(
        {
            "models": ["demo"],
            "prompts": {"path": str(tmp_path / "captions.txt")},
            "arms": {"baseline": {}},
            "workers": {"executor": "local"},
            "score": {"reference": str(reference), "extractor": "efficientnet-lite0", **score},
            "output": str(tmp_path / "out"),
        }
    )


def npz(file, **arrays):
    np.savez(file, **arrays)
    return file


def statistics(d=1280, **more):
    return {"mu": np.zeros(d), "sigma": np.eye(d), **more}


ABOUT = '{"extractor": "%s", "version": 1, "weights": "%s", "pictures": 9}'


def of_extractor(name, weights):
    return {"about": np.array(ABOUT % (name, weights)), "count": np.array(9)}


def a_folder(tmp_path, *contents):
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    return tmp_path


def not_a_table(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing more")
    return tmp_path / "x.parquet"


def a_table(tmp_path):
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def a_file(tmp_path, name, content=b"text"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


UNUSABLE = {
    "another width": (lambda t: npz(t / "a.npz", **statistics(2048)), "has 2048 dimensions"),
    "other names": (lambda t: npz(t / "a.npz", ref_mu=np.zeros(4)), "has no mu and no sigma"),
    "not finite": (
        lambda t: npz(t / "a.npz", mu=np.full(1280, np.nan), sigma=np.eye(1280)),
        "not finite",
    ),
    "mu and sigma apart": (
        lambda t: npz(t / "a.npz", mu=np.zeros(1280), sigma=np.eye(3)),
        "do not fit",
    ),
    "another sample": (
        lambda t: npz(t / "a.npz", **statistics(sample=np.zeros((4, 7)))),
        "its sample is not finite numbers of shape [4, 1280]",
    ),
    "another extractor": (
        lambda t: npz(t / "a.npz", **statistics(), **of_extractor("inception", "ab")),
        "was made with inception version 1",
    ),
    "other weights": (
        lambda t: npz(t / "a.npz", **statistics(), **of_extractor("efficientnet-lite0", "ab")),
        "(weights ab)",
    ),
    "an array of another kind": (lambda t: a_file(t, "stats.npy"), "is not a folder and not .tar"),
    "no archive": (lambda t: a_file(t, "a.npz"), "cannot be read"),
    "a missing file": (
        lambda t: t / "none.npz",
        "none.npz does not exist. Fix: make it with tgate-batch reference",
    ),
    "a pattern of nothing": (lambda t: t / "*.tar", "has no images"),
    "an empty folder": (lambda t: t, "has no images"),
    "one image": (lambda t: a_folder(t, encoded()), "has one image, and a distance needs 2"),
    "no images": (lambda t: a_folder(t, b"text", b"text"), "0.png cannot be read as an image"),
    "a damaged table": (not_a_table, "x.parquet cannot be read"),
    "a table without images": (a_table, "no column `image`"),
    "a damaged tar": (lambda t: a_file(t, "a.tar"), "a.tar cannot be read"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_reference_that_cannot_work_is_refused_before_anything_is_rendered(tmp_path, kind):
    make, said = UNUSABLE[kind]
    (tmp_path / "reference").mkdir()
    wanted = configured(tmp_path, make(tmp_path / "reference"))
    for start in (workflow.prepare, workflow.dry_run, workflow.render):
        with pytest.raises(UserError) as caught:
            start(wanted)
        assert said in str(caught.value)
        assert "score.reference" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_extractor_has_its_own_problem(tmp_path):
    for name in ("inception", "efficientnet-lite0"):
        npz(tmp_path / f"{name}.npz", **statistics(3))
    several = configured(
        tmp_path, tmp_path / "{extractor}.npz", extractor=["inception", "efficientnet-lite0"]
    )
    with pytest.raises(UserError) as caught:
        check_references(several)
    assert [("2048" in line, "1280" in line) for line in caught.value.problems] == [
        (True, False),
        (False, True),
    ]


def test_a_reference_that_can_work_has_no_problem(tmp_path):
    mine = of_extractor("efficientnet-lite0", EfficientNetLite0.sha256_of())
    npz(tmp_path / "a.npz", **statistics(sample=np.zeros((9, 1280), np.float32)), **mine)
    np.savez_compressed(tmp_path / "b.npz", **statistics())
    (tmp_path / "pictures").mkdir()
    places = [tmp_path / "a.npz", tmp_path / "b.npz"]
    places += [a_folder(tmp_path / "pictures", encoded(1), encoded(2)), "drawn"]
    for place in places:
        check_references(configured(tmp_path, place))


def test_what_is_known_of_an_extractor_is_what_it_says_when_it_is_loaded():
    loaded, described = EfficientNetLite0(), UnloadedExtractor("efficientnet-lite0")
    for key in ("name", "version", "dimensions", "sha256"):
        assert getattr(described, key) == getattr(loaded, key)
