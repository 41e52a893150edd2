import numpy as np
import pytest
import torch

from tgate_batch import config
from tgate_batch.models import catalogue
from tgate_batch.models.engine import prepare
from tgate_batch.models.pipeline_runner import open_runner
from tgate_batch.records import Prompt

PROMPTS = [Prompt(f"p{number}", f"a picture of number {number}") for number in range(3)]


def opened(settings, **engine):
    run = config.parse({**settings, "engine": engine})
    return open_runner(run.models[0], run)


def drawn(runner) -> np.ndarray:
    found = runner.decode(runner.denoise(runner.encode(PROMPTS), [0, 1, 2]))
    assert found.finite.all()
    return found.values.astype(int)


@pytest.mark.parametrize(
    "engine",
    [
        {"channels_last": False},
        {"fused_qkv": True},
        {"attention": "math"},
        {"attention": "flash"},
        {"decode_batch_size": 2},
        {"offload_text_encoder": True},
    ],
    ids=lambda engine: next(iter(engine)),
)
def test_engine_changes_the_last_bits_at_most(settings, engine):
    apart = np.abs(drawn(opened(settings)) - drawn(opened(settings, **engine)))
    assert apart.max() <= 1  # of 255


def test_settings_reach_the_pipeline(settings):
    runner = opened(settings, fused_qkv=True, compile=True)
    unet = runner.pipeline.unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.fused_projections
    assert unet._compiled_call_impl is not None
    assert torch._dynamo.config.recompile_limit >= 64  # several arms, each with its graphs


def test_regional_compilation_is_of_the_transformer_blocks_alone(settings):
    unet = opened(settings, compile="regional").pipeline.unet
    compiled = {type(part) for part in unet.modules() if part._compiled_call_impl is not None}
    assert {kind.__name__ for kind in compiled} == {"BasicTransformerBlock"}


def test_convolutions_over_time_keep_their_layout():
    pipeline = catalogue.tiny("svd")
    prepare(pipeline, config.Engine())
    layers = list(pipeline.unet.modules())
    picture = next(layer for layer in layers if isinstance(layer, torch.nn.Conv2d))
    time = next(layer for layer in layers if isinstance(layer, torch.nn.Conv3d))
    assert picture.weight.is_contiguous(memory_format=torch.channels_last)
    assert time.weight.is_contiguous()


def test_decoding_takes_no_more_pictures_at_once_than_told(settings):
    runner, sizes = opened(settings, decode_batch_size=2), []
    decode = runner.pipeline.vae.decode
    runner.pipeline.vae.decode = lambda latents, **options: (
        sizes.append(len(latents)) or decode(latents, **options)
    )
    drawn(runner)
    assert sizes == [2, 2]  # three, and one again in the free place
