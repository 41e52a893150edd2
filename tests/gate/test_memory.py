"""What the gate keeps: nothing after the block, nothing unread, exactly what was predicted."""

import gc
import weakref

import pytest
import torch
from diffusers.models.attention_processor import Attention

from tgate_batch.gate import Action, DeepCache, GatePlan, cache_bytes, denoiser_of
from tgate_batch.gate.pipeline import tracked

PLANS = [
    GatePlan(3, sp_interval=2, fi_interval=2, warm_up=0),
    GatePlan(4, sp_interval=3, fi_interval=1, warm_up=1),
    GatePlan(3),
    GatePlan(5, sp_interval=2, fi_interval=3, warm_up=0),
    GatePlan(20, sp_interval=3, warm_up=1),
    GatePlan(1, fi_interval=2),
    GatePlan(6),
]
NAMES = [
    pytest.param("sd15", marks=pytest.mark.slow),
    *("sdxl", "pixart_alpha", "pixart_sigma", "svd", "lcm_sdxl"),
]


def attention_layers(pipe):
    denoiser = denoiser_of(pipe)
    return [module for module in denoiser.modules() if isinstance(module, Attention)]


@pytest.fixture
def watched():
    """``watched(pipe, gate, look)`` calls ``look()`` after every attention layer."""
    handles = []

    def watch(pipe, look):
        for layer in attention_layers(pipe):
            handles.append(layer.register_forward_hook(lambda *_: look()))

    yield watch
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_predicted_peak_is_exact(tiny_models, arguments, watched, name, plan):
    pipe = tiny_models(name, scheduler=None if name in ("svd", "lcm_sdxl") else "ddim")
    guided, images, steps = name != "lcm_sdxl", 2, 6
    peak = 0

    def look():
        nonlocal peak
        peak = max(peak, gate.cached_bytes)

    with tracked(pipe, plan, guided) as gate:
        watched(pipe, look)
        pipe(**arguments(pipe, images, steps=steps))
        assert gate.cached_bytes == 0  # before the VAE needs the room
    frames = 2 if name == "svd" else 1
    denoiser = denoiser_of(pipe)
    assert peak == cache_bytes(denoiser, plan, steps, 8, 8, images, guided, frames)
    assert peak == gate.summary.peak_bytes
    assert (peak == 0) == (plan == GatePlan(6))


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (9, 7)])
def test_predicted_peak_is_exact_at_other_sizes(tiny_models, arguments, watched, size):
    pipe = tiny_models("sd15", scheduler="ddim")
    peak = 0

    def look():
        nonlocal peak
        peak = max(peak, gate.cached_bytes)

    call = arguments(pipe, 1, height=8 * size[0], width=8 * size[1])
    call["latents"] = torch.zeros(1, 4, *size)
    with tracked(pipe, PLANS[0]) as gate:
        watched(pipe, look)
        pipe(**call)
    assert peak == cache_bytes(pipe.unet, PLANS[0], 6, *size)


@pytest.mark.parametrize("deepcache", [None, DeepCache(2, 0)])
@pytest.mark.parametrize("error", [False, True])
def test_no_cached_tensor_outlives_the_block(tiny_models, arguments, watched, deepcache, error):
    pipe = tiny_models("sdxl", scheduler="ddim")
    kept = {}

    def look():
        for layer in gate.hooks[0].layers:
            for cache in layer.caches.values():
                kept[id(cache)] = weakref.ref(cache)
        if error and gate.hooks[0].now.cross is Action.REUSE:
            raise RuntimeError("planted")

    def run():
        nonlocal gate
        with tracked(pipe, PLANS[0], None, deepcache) as gate:
            watched(pipe, look)
            pipe(**arguments(pipe, 1))

    gate = None
    if error:
        with pytest.raises(RuntimeError, match="planted"):
            run()
    else:
        run()
    assert gate.hooks[0].layers  # the gate itself is still here
    gc.collect()
    assert len(kept) >= len(gate.hooks[0].layers)
    assert [tensor for tensor in kept.values() if tensor() is not None] == []


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.gate_step > 1], ids=str)
def test_nothing_is_stored_that_is_never_read(tiny_models, arguments, watched, plan):
    pipe = tiny_models("pixart_alpha", scheduler="ddim")
    layers = attention_layers(pipe)
    written, read = set(), set()

    def look():
        now = gate.hooks[0].now
        for layer, hook in zip(layers, gate.hooks[0].layers, strict=True):
            for cache in hook.caches.values():
                kind = now.cross if layer.is_cross_attention else now.self_
                (read if kind is Action.REUSE else written).add(id(cache))
                kept.append(cache)  # so that an id is not used twice

    kept = []
    with tracked(pipe, plan) as gate:
        watched(pipe, look)
        pipe(**arguments(pipe, 1))
    assert written == read
    assert bool(written) == (plan != GatePlan(6))
