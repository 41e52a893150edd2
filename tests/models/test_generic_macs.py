"""MACs of hollow pipelines: against the families' own count, and against calls written out here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tgate_batch.config import Arm, Model, Sampling, effective_sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.architecture import on_meta
from tgate_batch.models.generic import family as generic
from tgate_batch.models.generic.tiny import build
from tgate_batch.models.macs import hollow
from tgate_batch.models.macs.arm import macs_of_arm
from tgate_batch.models.resolve import resolve_model, resolve_sampling


@pytest.mark.parametrize("arm", [Arm(), Arm(guidance_until=2), Arm(steps=2)])
@pytest.mark.parametrize("name", ["sd15", "pixart_sigma", "sana"])
def test_hollow_pipeline_counts_what_a_family_counts(name, arm, tmp_path):
    """Two ways to one figure: a family calls its denoiser with inputs that its file describes."""
    folder = catalogue.save_tiny(name, tmp_path)
    model = Model(name="mine", path=str(folder))
    sampling = resolve_sampling(
        model, Sampling(steps=3, guidance_scale=4.0, height=64, width=64, batch_size=2)
    )
    found = resolve_model(model)
    counted, params = hollow.count_arm(
        found.row, generic.FAMILY, folder, arm, effective_sampling(sampling, arm)
    )
    expected = macs_of_arm(model, arm, sampling)
    assert counted.macs == expected.per_image
    assert counted.macs_with_attention == expected.per_image_with_attention
    assert params == expected.params


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def macs_of_call(network, **inputs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
        network(**inputs)
    return counter.get_total_flops() // 2


def letters(template: str, dropped: int, text: str) -> int:
    """Tokens of a caption for a tokenizer of bytes: marks in <| |> are one token."""
    tokenizer = build("QwenImagePipeline").tokenizer
    return len(tokenizer(template.format(text)).input_ids) - dropped


def flux_call(network):
    return macs_of_call(
        network,
        hidden_states=meta(1, 4096, 64),
        encoder_hidden_states=meta(1, 512, 4096),
        pooled_projections=meta(1, 768),
        timestep=meta(1),
        guidance=meta(1),
        img_ids=meta(4096, 3),
        txt_ids=meta(512, 3),
    )


def sd3_call(network):
    return macs_of_call(
        network,
        hidden_states=meta(2, 16, 128, 128),
        encoder_hidden_states=meta(2, 77 + 256, 4096),
        pooled_projections=meta(2, 2048),
        timestep=meta(2),
    )


def qwen_call(network):
    """Both branches: one call of each, with as many tokens as its caption has."""
    like = build("QwenImagePipeline")
    calls = []
    for text in (hollow._CAPTION, ""):
        tokens = letters(like.prompt_template_encode, 34, text)
        calls.append(
            macs_of_call(
                network,
                hidden_states=meta(1, 4096, 64),
                encoder_hidden_states=meta(1, tokens, 3584),
                timestep=meta(1),
                img_shapes=[[(1, 64, 64)]],
            )
        )
    return sum(calls)


def z_image_call(network):
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    tokens = letters(chat, 0, hollow._CAPTION)
    return macs_of_call(
        network,
        x=[meta(16, 1, 128, 128)],
        t=meta(1),
        cap_feats=[meta(tokens, 2560)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "call", "billions"),
    [
        ("flux1_dev", flux_call, 11.90),
        ("sd3_medium", sd3_call, 2.03),
        ("qwen_image", qwen_call, 20.43),
        ("z_image_turbo", z_image_call, 6.15),
    ],
)
def test_published_shapes_count_what_the_denoisers_call_counts(name, call, billions):
    row, family = catalogue.entry(name), catalogue.family_of(name)
    sampling = catalogue.resolve(name, Sampling())
    counted, params = hollow.count_arm(row, family, None, Arm(), sampling)
    network = on_meta(row.architecture.denoiser)
    assert counted.macs_with_attention == row.steps * call(network)
    assert abs(params / 1e9 - billions) < 0.006


def test_row_without_networks_asks_for_its_files():
    with pytest.raises(UserError, match="unknown without its files"):
        macs_of_arm(Model(name="chroma"), Arm(), catalogue.resolve("chroma", Sampling(steps=2)))


def test_network_that_looks_at_data_is_counted_in_the_loaded_pipeline(tmp_path):
    """Lumina 2 reads the length of each caption from its mask."""
    folder = tmp_path / "model"
    build("Lumina2Pipeline").save_pretrained(folder)
    model = Model(name="mine", path=str(folder))
    with pytest.raises(hollow.MacsUnknown, match="known only after the first batch"):
        macs_of_arm(
            model,
            Arm(),
            resolve_sampling(model, Sampling(steps=2, height=64, width=64, batch_size=1)),
        )
