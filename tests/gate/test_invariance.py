"""A prompt's latents are the same alone and among seven others."""

from itertools import product

import pytest
import torch

from tgate_batch.gate import DeepCache, GatePlan, denoiser_of, gated

PLANS = [GatePlan(3), GatePlan(3, 2, 2, 0)]


@pytest.fixture(scope="module")
def precise(tiny_models):
    """Twins in float64, where rounding is far below any mixing of pictures."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_models(name, fresh=True, scheduler="ddim").to(torch.float64)
        return made[name]

    return get


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_batch_mates_do_not_matter(precise, arguments, name, plan):
    assert disagreement(precise(name), arguments, plan) < 1e-11


@pytest.mark.parametrize(("name", "plan"), [("sd15", None), ("sdxl", PLANS[1])], ids=str)
def test_batch_mates_do_not_matter_to_deepcache(precise, arguments, name, plan):
    assert disagreement(precise(name), arguments, plan, DeepCache(2, 0)) < 1e-11


EVERY = [GatePlan(*values) for values in product((1, 3, 5, 20), (1, 2), (1, 2), (0, 1))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"])
def test_batch_mates_do_not_matter_to_any_plan(precise, arguments, name):
    for plan in EVERY:
        assert disagreement(precise(name), arguments, plan) < 1e-11, plan


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("deepcache", [DeepCache(2, 1), DeepCache(3, 0), DeepCache(3, 3)], ids=str)
def test_batch_mates_do_not_matter_to_branches_of_deepcache(precise, arguments, name, deepcache):
    for plan in [None, *EVERY[::3]]:
        assert disagreement(precise(name), arguments, plan, deepcache) < 1e-11, plan


def test_batch_mates_do_not_matter_to_a_video(tiny_models, arguments):
    """In float32, as the pipeline prepares its picture: rounding is near 1e-6."""
    pipe = tiny_models("svd")
    assert disagreement(pipe, arguments, PLANS[1], batch=3, noise_aug_strength=0.0) < 1e-4


def disagreement(pipe, arguments, plan, deepcache=None, batch=8, **more):
    """The largest difference in parts of the largest latent: rounding, or another picture."""

    def draw(batch):
        call = arguments(pipe, batch, steps=5, **more)
        precise = {
            name: value.to(denoiser_of(pipe).dtype)
            for name, value in call.items()
            if isinstance(value, torch.Tensor)
        }
        return pipe(**call | precise)[0]

    with gated(pipe, plan, deepcache=deepcache):
        alone, among = draw(1), draw(batch)
    other = (among[1:] - alone).abs().flatten(1).amax(dim=1)
    assert (other > 0.1 * alone.abs().max()).all()  # the others are other pictures
    return ((among[:1] - alone).abs().max() / alone.abs().max()).item()
