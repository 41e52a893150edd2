import doctest
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import inception
from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance
from torchvision.transforms.functional import to_tensor

from benchmarks.statistics import write_random_inception
from tgate_batch.errors import UserError
from tgate_batch.metrics import features as module
from tgate_batch.metrics.features import (
    INCEPTION_FILE,
    EfficientNetLite0,
    Inception,
    check_extractor,
    inception_input,
    known_extractors,
    load_extractor,
)
from tgate_batch.metrics.frechet import Statistics, frechet_distance
from tgate_batch.score.extractor_facts import ExtractorFacts


def pictures(count, seed, size=(48, 40), coarse=4):
    """Smooth random colour fields; fewer cells make another distribution."""
    cells = np.random.default_rng(seed).integers(0, 256, (count, coarse, coarse, 3), dtype=np.uint8)
    return [Image.fromarray(field).resize(size, Image.BICUBIC) for field in cells]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A torch hub folder with Inception weights, random ones, where pytorch-fid looks for them."""
    home = tmp_path_factory.mktemp("torch")
    weights = home / "hub" / "checkpoints" / INCEPTION_FILE
    weights.parent.mkdir(parents=True)
    write_random_inception(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield weights


@pytest.fixture(scope="module")
def ours(hub):
    return Inception()


@pytest.fixture(scope="module")
def theirs(hub):
    return inception.InceptionV3([3]).eval()


@pytest.fixture(scope="module")
def three_sets(ours, theirs, tmp_path_factory):
    """(our features, pytorch-fid's mean and covariance) of the same files, for three sets."""
    sets = [pictures(6, 1), pictures(7, 2, coarse=2), pictures(5, 3, (64, 64), coarse=8)]
    both = []
    for images in sets:
        folder = tmp_path_factory.mktemp("set")
        for n, image in enumerate(images):
            image.save(folder / f"{n}.png")
        files = sorted(folder.iterdir())
        reference = calculate_activation_statistics(files, theirs, num_workers=0)
        both.append((ours([Image.open(file) for file in files]), reference))
    return both


def test_network_input_is_bitwise_pytorch_fids(theirs):
    images = pictures(2, 0) + pictures(1, 1, (300, 299)) + pictures(1, 2, (512, 384))
    fed = []
    hook = theirs.blocks[0].register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))
    try:
        for image in images:
            theirs(to_tensor(image)[None])
    finally:
        hook.remove()
    assert torch.equal(2 * inception_input(images) - 1, torch.cat(fed))


def test_a_batch_is_resized_bitwise_as_its_pictures_are_one_by_one():
    batch = torch.stack([to_tensor(image) for image in pictures(3, 3)])
    resized = torch.nn.functional.interpolate(batch, (299, 299), mode="bilinear")
    assert torch.equal(inception_input(pictures(3, 3)), resized)


def test_mean_features_are_pytorch_fids(three_sets):
    for features, (mean, _) in three_sets:
        np.testing.assert_allclose(features.mean(axis=0), mean, rtol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (2, 0)])
def test_distance_over_some_features_is_pytorch_fids(three_sets, a, b):
    _assert_equal_distances(three_sets[a], three_sets[b], dimensions=128)


@pytest.mark.slow
@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2), (2, 0)])
def test_distance_over_all_features_is_pytorch_fids(three_sets, a, b):
    _assert_equal_distances(three_sets[a], three_sets[b], dimensions=2048)


def _assert_equal_distances(a, b, dimensions):
    few = slice(dimensions)
    expected = calculate_frechet_distance(
        *(part for _, (mean, sigma) in (a, b) for part in (mean[few], sigma[few, few]))
    )
    found = frechet_distance(Statistics.of(a[0][:, few]), Statistics.of(b[0][:, few]))
    assert found == pytest.approx(expected, rel=1e-6)


def test_other_weights_are_never_called_fid(ours):
    assert ours.label == f"FD-inception-{ours.sha256[:8]}"
    assert "6726825d" in ours.note


def test_a_path_is_preferred_to_the_hub_folder(ours, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Inception(hub).sha256 == ours.sha256
    with pytest.raises(UserError, match=r"not at .*efficientnet-lite0"):
        Inception()


def test_weights_that_are_cut_off_say_so_in_one_line(hub, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(hub.read_bytes()[:100_000])
    for extractor in (Inception, EfficientNetLite0):
        with pytest.raises(UserError, match="cannot be read") as caught:
            extractor(cut)
        assert "\n" not in str(caught.value)


def test_weights_of_another_network_say_so_in_one_line(hub, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, other)
    for extractor in (Inception, EfficientNetLite0):
        with pytest.raises(UserError, match="is not") as caught:
            extractor(other)
        assert "\n" not in str(caught.value)


def test_a_weights_file_cannot_run_code(tmp_path):
    class Run:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"weight": Run()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be read"):
        Inception(tmp_path / "w.pth")


@pytest.fixture(scope="module")
def lite():
    return load_extractor("efficientnet-lite0")


def test_the_embedded_extractor_needs_no_download_and_is_not_fid(lite):
    assert (lite.label, lite.note) == ("FD-efficientnet-lite0", None)
    assert lite.sha256.startswith("57934424")


def test_features_are_the_pooled_input_of_the_classifier(lite):
    (image,) = pictures(1, 4, (224, 224))
    scale = torch.tensor([0.485, 0.456, 0.406, 0.229, 0.224, 0.225]).view(2, 3, 1, 1)
    with torch.no_grad():
        logits = lite._network((to_tensor(image) - scale[0])[None] / scale[1])
        classifier = lite._network._fc
        ours = classifier(torch.from_numpy(lite([image])))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_pictures_may_differ_in_size_and_mode(lite):
    images = [Image.new("RGB", (10, 80), "red"), Image.new("L", (64, 64)), *pictures(1, 5)]
    together = lite(images)
    assert (together.shape, together.dtype) == ((3, 1280), np.float32)
    alone = np.concatenate([lite([image]) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_no_pictures_have_no_features(lite, ours):
    assert lite([]).shape == (0, 1280)
    assert ours([]).shape == (0, 2048)


class MeanColour:
    """An extractor of one's own: three features."""

    name, dimensions, label, note, sha256 = "mean-colour", 3, "FD-mean-colour", None, "0" * 64

    def __init__(self, path=None, device="cpu"):
        self.path = path

    def __call__(self, images):
        return np.array([np.asarray(i).mean(axis=(0, 1)) for i in images], np.float32)


def test_an_extractor_of_ones_own_is_named_by_module_and_class():
    extractor = load_extractor(f"{__name__}:MeanColour", "weights")
    assert extractor.path == "weights"
    np.testing.assert_array_equal(extractor([Image.new("RGB", (2, 2), "red")]), [[255, 0, 0]])


@pytest.mark.parametrize("name", ["incepton", "no.such.module:X", f"{__name__}:NoSuchClass"])
def test_an_unknown_extractor_says_so_in_one_line(name):
    for look in (load_extractor, check_extractor):
        with pytest.raises(UserError, match="extractor") as caught:
            look(name, None)
        assert "\n" not in str(caught.value)


def test_known_extractors_are_known_without_their_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert known_extractors() == ("inception", "efficientnet-lite0", "dinov2", "cmmd")
    for name in (*known_extractors(), f"{__name__}:MeanColour"):
        check_extractor(name, "some/folder")


@pytest.mark.parametrize("name", ["dinov2", "cmmd"])
def test_extractor_that_keeps_no_weights_is_refused_without_any(name):
    with pytest.raises(UserError, match=rf"give a checkpoint's folder as score.weights.{name}"):
        check_extractor(name, None)


def test_examples_of_the_documentation_run():
    assert doctest.testmod(module).attempted == 2
    assert doctest.testmod(module).failed == 0


def test_example_of_the_contract_is_an_extractor():
    code = module.Extractor.__doc__.split("::\n", 1)[1].split("    - ``label``")[0]
    names = {"np": np}
    exec(textwrap.dedent(code), names)
    extractor = names["MeanColour"](None, "cpu")
    grey = Image.new("RGB", (4, 4), (10, 20, 30))
    assert extractor([grey]).tolist() == [[10.0, 20.0, 30.0]]
    assert extractor([]).shape == (0, extractor.dimensions)
    facts = ExtractorFacts.of(extractor)
    assert (facts.version, facts.kind) == (1, "frechet")
