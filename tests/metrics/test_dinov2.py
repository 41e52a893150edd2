import json
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

from tgate_batch.errors import UserError
from tgate_batch.metrics.dinov2 import DinoV2
from tgate_batch.metrics.features import check_extractor, load_extractor
from tgate_batch.metrics.weights import unlike

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}


def save(folder, image_size=224, **settings):
    """A tiny DINOv2 of random weights, of which none is zero."""
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(image_size=image_size, **(SIZE | settings)))
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def pictures():
    random = np.random.default_rng(0)
    sizes = [(40, 32), (224, 224), (300, 500)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def network_input(image):
    """The published input, by hand: float32 [1, 3, 224, 224]."""
    pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.BICUBIC), np.float32) / 255
    scaled = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(scaled.astype(np.float32)).permute(2, 0, 1)[None]


def test_features_are_the_class_token_after_the_last_norm(checkpoint):
    network = Dinov2Model.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        states = [network(network_input(image)).last_hidden_state for image in pictures()]
    features = DinoV2(checkpoint)(pictures())
    assert (features.shape, features.dtype) == ((3, 16), np.float32)
    np.testing.assert_allclose(features, torch.cat(states)[:, 0], rtol=1e-4, atol=1e-4)


def test_positions_of_a_larger_input_are_resampled_as_published(tmp_path):
    extractor = DinoV2(save(tmp_path, image_size=518))
    stored = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings"]
    grid = stored[:, 1:].reshape(1, 37, 37, 16).permute(0, 3, 1, 2)
    ratio = (16 + 0.1) / 37
    grid = torch.nn.functional.interpolate(grid, scale_factor=(ratio, ratio), mode="bicubic")
    found = extractor._network.embeddings.position_embeddings
    torch.testing.assert_close(found[:, :1], stored[:, :1])
    torch.testing.assert_close(found[:, 1:], grid.permute(0, 2, 3, 1).reshape(1, 256, 16))
    assert extractor(pictures()[:1]).shape == (1, 16)


def test_positions_that_do_not_change_are_resampled_to_themselves(tmp_path):
    save(tmp_path, image_size=518)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embeddings.position_embeddings"][:] = torch.arange(16.0)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found = DinoV2(tmp_path)._network.embeddings.position_embeddings
    torch.testing.assert_close(found, torch.arange(16.0).expand(1, 257, 16))


def test_pictures_may_differ_in_mode_and_none_have_no_features(checkpoint):
    extractor = DinoV2(checkpoint)
    grey = Image.new("L", (20, 30), 90)
    assert np.array_equal(extractor([grey]), extractor([grey.convert("RGB")]))
    assert extractor([]).shape == (0, 16)


def test_another_architecture_has_a_label_and_a_note_of_its_own(checkpoint):
    extractor = load_extractor("dinov2", checkpoint)
    assert (extractor.name, extractor.dimensions, extractor.distance) == ("dinov2", 16, "frechet")
    assert extractor.label == f"FD-DINOv2-{extractor.sha256[:8]}"
    assert "hidden_size 16, not 1024" in extractor.note


def test_only_what_is_not_as_published_is_told():
    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
    published = {"hidden_size": 1024, "num_hidden_layers": 24}
    assert unlike(config, published) == ""
    assert unlike(config, published | {"patch_size": 15}) == "patch_size 14, not 15"


def test_the_published_architecture_has_the_published_label(checkpoint, monkeypatch):
    monkeypatch.setattr("tgate_batch.metrics.dinov2._PUBLISHED", SIZE)
    extractor = DinoV2(checkpoint)
    assert (extractor.label, extractor.note) == ("FD-DINOv2", None)


def test_sha256_follows_what_loading_reads(checkpoint, copy):
    before = DinoV2(checkpoint).sha256
    (copy / "README.md").write_text("read by nobody")
    assert DinoV2(copy).sha256 == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert DinoV2(copy).sha256 != before


def test_weights_in_parts_and_in_half_precision_are_read(checkpoint, tmp_path):
    Dinov2Model.from_pretrained(checkpoint).half().save_pretrained(tmp_path, max_shard_size="10KB")
    assert not (tmp_path / "model.safetensors").exists()
    found = DinoV2(tmp_path)._network.state_dict()
    for name, weights in DinoV2(checkpoint)._network.state_dict().items():
        assert torch.equal(found[name], weights.half().float())


def test_a_classifiers_folder_is_read_without_its_classifier(checkpoint, copy):
    weights = load_file(checkpoint / "model.safetensors")
    renamed = {f"dinov2.{name}": value for name, value in weights.items()}
    classifier = {"classifier.weight": torch.zeros(2, 32), "classifier.bias": torch.zeros(2)}
    save_file(renamed | classifier, copy / "model.safetensors", {"format": "pt"})
    np.testing.assert_array_equal(DinoV2(copy)(pictures()), DinoV2(checkpoint)(pictures()))


def test_nothing_is_asked_of_the_network(checkpoint, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert DinoV2(str(checkpoint))(pictures()[:1]).shape == (1, 16)
    with pytest.raises(UserError, match="downloads nothing"):
        DinoV2("facebook/dinov2-large")


def test_the_extractor_is_known_without_its_weights():
    check_extractor("dinov2", "folder")
    with pytest.raises(UserError, match=r"no default weights.*facebook/dinov2-large") as caught:
        load_extractor("dinov2")
    assert "\n" not in str(caught.value)


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def become_clip(folder):
    shutil.rmtree(folder)
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
    ).save_pretrained(folder)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


WRONG = {
    "missing": (shutil.rmtree, "does not exist"),
    "empty": (lambda f: [file.unlink() for file in f.iterdir()], "no readable config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "no readable config.json"),
    "bad config": (lambda f: (f / "config.json").write_text("{"), "no readable config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "type None, not dinov2"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "save_pretrained"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "save_pretrained",
    ),
    "clip": (become_clip, "type 'clip_vision_model', not dinov2"),
    "registers": (
        lambda f: change_config(f, model_type="dinov2_with_registers"),
        "type 'dinov2_with_registers', not dinov2",
    ),
    "quantised": (lambda f: change_config(f, quantization_config={}), "is quantised"),
    "cut off": (cut, "cut off"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4"), "cut off"),
    "another width": (lambda f: change_config(f, hidden_size=32), "of another shape"),
    "another patch": (lambda f: change_config(f, patch_size=16), "of another shape"),
    "a layer too many": (lambda f: change_config(f, num_hidden_layers=3), "missing"),
    "a layer too few": (
        lambda f: change_config(f, num_hidden_layers=1, out_features=None, out_indices=None),
        "left over",
    ),
    "no last norm": (lambda f: change_weights(f, lambda w: w.pop("layernorm.weight")), "missing"),
    "a broken config": (lambda f: change_config(f, hidden_act="nonsense"), "cannot be loaded as a"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_folder_says_so_in_one_line(kind, copy):
    spoil, reason = WRONG[kind]
    spoil(copy)
    with pytest.raises(UserError, match=reason) as caught:
        DinoV2(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(checkpoint):
    with pytest.raises(UserError, match=r"model\.safetensors is a file"):
        DinoV2(checkpoint / "model.safetensors")


def test_loading_says_nothing_and_leaves_transformers_as_loud_as_before(copy, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    DinoV2(copy)
    change_config(copy, num_hidden_layers=3)
    with pytest.raises(UserError):
        DinoV2(copy)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
