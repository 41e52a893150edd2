import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from tgate_batch.errors import UserError
from tgate_batch.metrics.clip import METRIC, ClipScore

PROMPTS = ["red", "a blue dog", "cab " * 100]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny CLIP of random weights, whose tokens are letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 16,
    }
    text = CLIPTextConfig(vocab_size=len(tokens), max_position_embeddings=77, **ends, **size)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    )
    model.save_pretrained(folder)
    CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
    ).save_pretrained(folder)
    return folder


def pictures():
    rng = np.random.default_rng(0)
    sizes = [(40, 32), (64, 64), (33, 50)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_score_is_a_hundred_times_the_cosine_of_the_embeddings(checkpoint):
    model = CLIPModel.from_pretrained(checkpoint)
    processor = CLIPProcessor.from_pretrained(checkpoint)
    scores = ClipScore(str(checkpoint))(pictures(), PROMPTS)
    for score, image, prompt in zip(scores, pictures(), PROMPTS, strict=True):
        inputs = processor(text=[prompt], images=[image], return_tensors="pt", truncation=True)
        with torch.no_grad():
            output = model(**inputs)
        cosine = float((output.image_embeds * output.text_embeds).sum())
        assert score == pytest.approx(max(100 * cosine, 0), abs=1e-3)


def test_no_pictures_have_no_scores(checkpoint):
    assert ClipScore(str(checkpoint))([], []).shape == (0,)


def test_a_folder_without_a_model_says_so_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="CLIP cannot be loaded") as caught:
        ClipScore(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_identity_follows_the_files_that_loading_reads(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    before = METRIC.fingerprint(str(checkpoint))
    assert METRIC.fingerprint(str(copy)) == before
    (copy / "README.md").write_text("read by nobody")
    assert METRIC.fingerprint(str(copy)) == before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert METRIC.fingerprint(str(copy)) != before


def test_identity_of_a_hub_id_is_that_of_its_cached_files(checkpoint, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--clip" / "snapshots" / ("0" * 40)
    shutil.copytree(checkpoint, snapshot)
    (tmp_path / "models--some--clip" / "refs").mkdir()
    (tmp_path / "models--some--clip" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert METRIC.fingerprint("some/clip") == METRIC.fingerprint(str(checkpoint))


def test_what_is_no_checkpoint_has_no_identity(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for place in (str(tmp_path), "some/clip", "/no/such/folder"):
        with pytest.raises(UserError, match="CLIP cannot be loaded") as caught:
            METRIC.fingerprint(place)
        assert "\n" not in str(caught.value)
