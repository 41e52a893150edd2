import json
import math
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from tgate_batch.errors import UserError
from tgate_batch.metrics import cmmd as module
from tgate_batch.metrics.cmmd import ClipVision, cmmd, gaussian_kernel
from tgate_batch.metrics.features import check_extractor, load_extractor

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = SIZE | {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with both towers of a tiny CLIP of random weights, as CLIPs are published."""
    folder = tmp_path_factory.mktemp("clip")
    text = SIZE | {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=CLIPTextConfig(**text).to_dict(),
        vision_config=CLIPVisionConfig(**VISION).to_dict(),  # whose projection_dim is 512
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A folder with the vision tower alone."""
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(1)
    network = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=12, **VISION))
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def pictures():
    random = np.random.default_rng(0)
    sizes = [(32, 32), (40, 33), (50, 81)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def network_input(image):
    """The published input, by hand: the middle square, float32 [1, 3, 32, 32]."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    scaled = np.asarray(square.resize((32, 32), Image.BICUBIC), np.float32) / 255
    scaled = (scaled - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def points(count, seed, dimensions=5):
    return np.random.default_rng(seed).normal(0, 4, (count, dimensions)).astype(np.float32)


def naive(a, b):
    def mean(xs, ys):
        return np.mean([math.exp(-(math.dist(x, y) ** 2) / 200) for x in xs for y in ys])

    a, b = a.tolist(), b.tolist()
    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("block", [2048, 7])
def test_cmmd_is_the_formula_written_out(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    a, b = points(20, 1), points(33, 2) + 1
    assert cmmd(a, b) == pytest.approx(naive(a, b), rel=1e-9)
    assert cmmd(b, a) == pytest.approx(cmmd(a, b), rel=1e-9)


@pytest.mark.parametrize("distance", [0.0, 1.0, 10.0, 1000.0])
def test_two_points_at_a_distance_have_an_answer_worked_out_by_hand(distance):
    a, b = np.array([[3.0, 0.0]]), np.array([[3.0, distance]])
    assert cmmd(a, b) == pytest.approx(1000 * (2 - 2 * math.exp(-(distance**2) / 200)), abs=1e-9)


def test_a_set_is_at_distance_0_of_itself(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert cmmd(points(30, 3), points(30, 3)) == 0


def test_the_order_of_pictures_does_not_matter():
    a, b = points(20, 1), points(20, 2)
    assert cmmd(a[::-1], b) == pytest.approx(cmmd(a, b), rel=1e-9)


def test_the_kernel_is_of_every_pair_and_of_float64():
    kernel = gaussian_kernel(points(3, 1), points(4, 2))
    assert (kernel.shape, kernel.dtype) == ((3, 4), np.float64)
    apart = math.dist(points(3, 1)[2].tolist(), points(4, 2)[1].tolist())
    assert kernel[2, 1] == pytest.approx(math.exp(-(apart**2) / 200), rel=1e-9)
    assert gaussian_kernel(points(9, 1), points(9, 1)).max() <= 1


def test_features_are_embeddings_of_length_1(tower):
    features = ClipVision(tower)(pictures())
    assert (features.shape, features.dtype) == ((3, 12), np.float32)
    network = CLIPVisionModelWithProjection.from_pretrained(tower).eval()
    for feature, image in zip(features, pictures(), strict=True):
        with torch.no_grad():
            embedded = network(pixel_values=network_input(image)).image_embeds[0]
        expected = embedded / embedded.square().sum().sqrt()
        np.testing.assert_allclose(feature, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((features**2).sum(axis=1), 1, rtol=1e-5)


def test_a_folder_of_both_towers_gives_the_embeddings_of_the_whole_clip(whole):
    features = ClipVision(whole)(pictures())
    clip = CLIPModel.from_pretrained(whole).eval()
    with torch.no_grad():
        rows = [
            clip(
                pixel_values=network_input(image),
                input_ids=torch.tensor([[18, 1, 19]]),
                attention_mask=torch.ones(1, 3, dtype=torch.long),
            ).image_embeds
            for image in pictures()
        ]
    np.testing.assert_allclose(features, torch.cat(rows), rtol=1e-4, atol=1e-5)


def test_pictures_may_differ_in_mode_and_none_have_no_features(tower):
    extractor = ClipVision(tower)
    grey = Image.new("L", (20, 30), 90)
    assert np.array_equal(extractor([grey]), extractor([grey.convert("RGB")]))
    assert extractor([]).shape == (0, 12)


def test_another_architecture_has_a_label_and_a_note_of_its_own(whole):
    extractor = load_extractor("cmmd", whole)
    assert (extractor.name, extractor.dimensions, extractor.distance) == ("cmmd", 12, "cmmd")
    assert extractor.label == f"CMMD-{extractor.sha256[:8]}"
    assert "image_size 32, not 336" in extractor.note
    assert "projection_dim 12, not 768" in extractor.note


def test_the_published_architecture_has_the_published_label(whole, monkeypatch):
    monkeypatch.setattr(module, "_PUBLISHED", SIZE | {"projection_dim": 12})
    extractor = ClipVision(whole)
    assert (extractor.label, extractor.note) == ("CMMD", None)


def test_sha256_follows_what_loading_reads(whole, copy):
    before = ClipVision(whole).sha256
    (copy / "tokenizer.json").write_text("{}")
    assert ClipVision(copy).sha256 == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert ClipVision(copy).sha256 != before


def test_position_ids_of_older_checkpoints_are_passed_over(copy):
    change_weights(
        copy, lambda w: w.update({"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    )
    assert ClipVision(copy)(pictures()).shape == (3, 12)


def test_nothing_is_asked_of_the_network(whole, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert ClipVision(str(whole))(pictures()[:1]).shape == (1, 12)
    with pytest.raises(UserError, match="downloads nothing"):
        ClipVision("openai/clip-vit-large-patch14-336")


def test_the_extractor_is_known_without_its_weights():
    check_extractor("cmmd", "folder")
    with pytest.raises(
        UserError, match=r"no default weights.*clip-vit-large-patch14-336"
    ) as caught:
        load_extractor("cmmd")
    assert "\n" not in str(caught.value)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def become_dinov2(folder):
    shutil.rmtree(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=28, **size)).save_pretrained(folder)


def lose_projection(folder):
    shutil.rmtree(folder)
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WRONG = {
    "missing": (shutil.rmtree, "does not exist"),
    "no config": (lambda f: (f / "config.json").unlink(), "no readable config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "save_pretrained"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "save_pretrained",
    ),
    "dinov2": (become_dinov2, "type 'dinov2', not clip"),
    "no projection": (lose_projection, r"missing \(visual_projection\.weight\)"),
    "cut off": (cut, "cut off"),
    "another width": (lambda f: change_config(f, hidden_size=32), "of another shape"),
    "another image size": (lambda f: change_config(f, image_size=48), "of another shape"),
    "a layer too many": (lambda f: change_config(f, num_hidden_layers=3), "missing"),
    "a layer too few": (lambda f: change_config(f, num_hidden_layers=1), "left over"),
    "text alone": (
        lambda f: change_weights(
            f, lambda w: [w.pop(name) for name in list(w) if name.startswith("vis")]
        ),
        "missing",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_folder_says_so_in_one_line(kind, copy):
    spoil, reason = WRONG[kind]
    spoil(copy)
    with pytest.raises(UserError, match=reason) as caught:
        ClipVision(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)
