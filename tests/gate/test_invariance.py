"""A prompt's latents are the same alone and among seven others."""

import pytest
import torch

from tgate_batch.gate import DeepCache, GatePlan, gated

PLANS = [GatePlan(3), GatePlan(3, 2, 2, 0), GatePlan(4, 3, 1, 1), GatePlan(20, 2, 1, 0)]


@pytest.fixture(scope="module")
def precise(twins):
    """Twins in float64, where rounding is far below any mixing of pictures."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = twins(name, fresh=True, scheduler="ddim").to(torch.float64)
        return made[name]

    return get


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_batch_mates_do_not_matter(precise, arguments, name, plan):
    assert disagreement(precise(name), arguments, plan) < 1e-11


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("plan", [None, *PLANS[:2]], ids=str)
def test_batch_mates_do_not_matter_to_deepcache(precise, arguments, name, plan):
    assert disagreement(precise(name), arguments, plan, DeepCache(2, 0)) < 1e-11


def disagreement(pipe, arguments, plan, deepcache=None):
    """The largest difference in parts of the largest latent: rounding, or another picture."""

    def draw(batch):
        call = arguments(pipe, batch, steps=5)
        precise = {
            name: value.double() for name, value in call.items() if isinstance(value, torch.Tensor)
        }
        return pipe(**call | precise)[0]

    with gated(pipe, plan, deepcache=deepcache):
        alone, among = draw(1), draw(8)
    other = (among[1:] - alone).abs().amax(dim=(1, 2, 3))
    assert (other > 0.1 * alone.abs().max()).all()  # the others are other pictures
    return ((among[:1] - alone).abs().max() / alone.abs().max()).item()
