import csv
import json
import logging
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tgate_batch import demo
from tgate_batch.config import Arm
from tgate_batch.demo import scenes
from tgate_batch.demo.training import evaluate, networks, train
from tgate_batch.demo.training.muon import orthogonalised
from tgate_batch.gate import GatePlan

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@cache
def pipeline():
    return evaluate.load()


def shipped_captions():
    with demo.PROMPTS.open(newline="") as file:
        return [(row["id"], row["caption"]) for row in csv.DictReader(file)]


def test_at_least_200_different_captions_ship_and_all_are_held_out():
    rows = shipped_captions()
    assert len({number for number, _ in rows}) == len(rows) >= 200
    assert len({caption for _, caption in rows}) == len(rows)
    assert all(scenes.is_held_out(scenes.parse(caption)) for _, caption in rows)


def test_training_never_draws_a_held_out_scene():
    assert not any(map(scenes.is_held_out, scenes.random_scenes(2000, seed=5, held_out=False)))


def test_model_is_float16_safetensors_of_at_most_12_megabytes():
    files = [demo.PATH / "model_index.json"]
    files += [file for part in PARTS for file in (demo.PATH / part).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    for part in ("unet", "vae", "text_encoder"):
        (weights,) = (demo.PATH / part).glob("*.safetensors")
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        kinds = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert kinds == {"F16"}


def test_folder_loads_offline_as_float32_without_a_warning(tmp_path):
    code = """
import warnings
warnings.simplefilter("error")
from diffusers import StableDiffusionPipeline
from tgate_batch.demo import PATH
pipe = StableDiffusionPipeline.from_pretrained(PATH)
print({str(part.dtype) for part in (pipe.unet, pipe.vae, pipe.text_encoder)})
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, **offline, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["{'torch.float32'}"]
    said = done.stderr.lower()
    assert not any(word in said for word in ("warning", "expected", "ignored", "deprecated"))


def test_attention_is_a_fifth_of_the_denoiser_at_two_resolutions():
    unet = networks.unet()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(1, 8, 16, 16), 500, torch.zeros(1, networks.TOKENS, 128))
    flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    attention = sum(n for name, n in flops.items() if name.endswith((".attn1", ".attn2")))
    assert attention / counter.get_total_flops() >= 0.2
    for level in ("down_blocks.0", "down_blocks.1"):
        for kind in ("attn1", "attn2"):
            assert any(level in name and name.endswith(kind) for name in flops)


def test_every_caption_word_is_one_token_and_other_words_are_spelled():
    tokens = pipeline().tokenizer
    for word in networks.words():
        assert len(tokens(word).input_ids) == 3
    assert tokens.decode(tokens("a café").input_ids, skip_special_tokens=True) == "a café"


def test_longest_caption_is_not_cut():
    captions = [str(scene) for scene in scenes.random_scenes(50, seed=1, held_out=False)]
    assert max(map(len, pipeline().tokenizer(captions).input_ids)) <= networks.TOKENS


def test_pictures_of_held_out_captions_are_mostly_right():
    captions = [caption for _, caption in shipped_captions()[:16]]
    held = evaluate.accuracy(evaluate.render(pipeline(), captions), captions)
    assert held["background"].mean() >= 0.9
    assert held["places"].mean() >= 0.75
    assert held["all"].mean() >= 0.5


def test_autoencoder_keeps_what_a_caption_says():
    captions = evaluate.captions(50)
    drawn = [scenes.draw(caption, seed) for seed, caption in enumerate(captions)]
    assert evaluate.accuracy(evaluate.through_vae(pipeline(), drawn), captions)["all"].mean() >= 0.9


def test_caption_outside_the_grammar_renders(caplog):
    with caplog.at_level(logging.ERROR):
        (image,) = evaluate.render(
            pipeline(),
            ["A man riding a wave on top of a surfboard while a crowd of people watch the sea."],
        )
    assert image.size == (64, 64)


def test_plan_is_written_as_gate_and_intervals():
    assert evaluate.arm_of("10").plan == GatePlan(10)
    assert evaluate.arm_of("15/3").plan == GatePlan(15, sp_interval=3, warm_up=2)
    assert evaluate.arm_of("15/3/2").plan == GatePlan(15, sp_interval=3, fi_interval=2, warm_up=2)


def test_rivals_of_a_plan_are_written_by_their_kind():
    assert evaluate.arm_of("steps:18") == Arm(steps=18)
    assert evaluate.arm_of("steps:18:DDIMScheduler") == Arm(steps=18, scheduler="DDIMScheduler")
    assert evaluate.arm_of("guidance:2-14") == Arm(guidance_from=2, guidance_until=14)


def test_muon_step_has_singular_values_near_one():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    for m in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalised(m))
        assert values.min() > 0.5
        assert values.max() < 1.5


@pytest.mark.slow
def test_resumed_training_ends_in_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 8)
    monkeypatch.setattr(train, "BATCH", 4)

    def trained(folder, stop_after=None, resume=False):
        budgets = [train.Budget(2, None), train.Budget(4, None)]
        trainer = train.Trainer(tmp_path / folder, 0, "cpu", *budgets)
        if resume:
            trainer.resume()
        trainer.run(stop_after)
        return trainer

    whole = trained("whole")
    trained("halves", stop_after=2)
    halves = trained("halves", resume=True)
    for part in ("vae", "model", "average"):
        for a, b in zip(
            getattr(whole, part).parameters(), getattr(halves, part).parameters(), strict=True
        ):
            assert torch.equal(a, b)
