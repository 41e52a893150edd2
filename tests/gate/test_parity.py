"""Latents equal those of the reference implementation (tgate 1.0.0), bit for bit."""

import pytest
import tgate as reference
import torch

from tgate_batch.gate import DeepCache, GatePlan, gated

LOADERS = {
    "sd15": reference.TgateSDLoader,
    "sdxl": reference.TgateSDXLLoader,
    "pixart_alpha": reference.TgatePixArtAlphaLoader,
    "pixart_sigma": reference.TgatePixArtSigmaLoader,
    "svd": reference.TgateSVDLoader,
}
# gate_step, sp_interval, fi_interval, warm_up: self-attention computed and reused on both sides of
# the gate, cross-attention only, gates at the first, the last and beyond the last of 6 steps.
PLANS = [
    GatePlan(4, 3, 1, 1),
    GatePlan(3, 1, 1, 0),
    GatePlan(3, 2, 2, 0),
    GatePlan(2, 2, 3, 1),
    GatePlan(5, 2, 1, 2),
    GatePlan(1, 1, 1, 0),
    GatePlan(6, 3, 2, 1),
    GatePlan(20, 4, 1, 3),
]


def settings(plan):
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


def difference(ours, theirs, plan, call, guided=True, deepcache=None, **reference_only):
    with gated(ours, plan, guided=guided, deepcache=deepcache):
        a = ours(**call)[0]
    b = theirs.tgate(**call, **settings(plan), **reference_only)[0]
    assert a.isfinite().all()
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def pair(tiny_models):
    """A shared model for ours, and one that the reference keeps patched."""
    patched = {}

    def get(name, loader, scheduler=None):
        if name not in patched:
            patched[name] = loader(tiny_models(name, fresh=True))
        ours = tiny_models(name, scheduler=scheduler)
        patched[name].scheduler = type(ours.scheduler).from_config(ours.scheduler.config)
        patched[name].set_progress_bar_config(disable=True)
        return ours, patched[name]

    return get


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_latents_equal_the_reference(pair, arguments, name, plan):
    scheduler, batch = ("ddim", 3) if PLANS.index(plan) % 2 else ("dpm", 1)
    ours, theirs = pair(name, LOADERS[name], scheduler)
    assert difference(ours, theirs, plan, arguments(ours, batch)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_latents_equal_the_reference_on_the_whole_grid(
    pair, arguments, name, scheduler, batch, plan
):
    ours, theirs = pair(name, LOADERS[name], scheduler)
    call = arguments(ours, batch, steps=12, seed=1)
    assert difference(ours, theirs, plan, call) == 0.0


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_alpha", "pixart_sigma"])
def test_euler_latents_equal_the_reference(pair, arguments, name):
    ours, theirs = pair(name, LOADERS[name], "euler")
    assert difference(ours, theirs, PLANS[0], arguments(ours, 1)) == 0.0


@pytest.mark.parametrize("plan", PLANS[:3], ids=str)
def test_video_latents_equal_the_reference(pair, arguments, plan):
    ours, theirs = pair("svd", reference.TgateSVDLoader)
    batch = 1 + PLANS.index(plan) % 2
    # Without noise on the picture: the two draw it from the generator differently often.
    call = arguments(ours, batch, steps=5, noise_aug_strength=0.0)
    assert difference(ours, theirs, plan, call) == 0.0


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("lcm_sdxl", reference.TgateSDXLLoader),
        ("lcm_pixart_alpha", reference.TgatePixArtAlphaLoader),
    ],
)
@pytest.mark.parametrize("gate_step", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_distilled_latents_equal_the_reference(pair, arguments, name, loader, gate_step, batch):
    ours, theirs = pair(name, loader)
    plan = GatePlan(gate_step)
    call = arguments(ours, batch, steps=4)
    if name == "lcm_pixart_alpha":
        call["guidance_scale"] = 0.0
    # LCM's scheduler draws noise at every step.
    latents = []
    for run in (ours, theirs.tgate):
        more = {} if run is ours else settings(plan) | {"lcm": True}
        with gated(ours, plan if run is ours else None, guided=False):
            latents.append(run(**call, generator=torch.Generator().manual_seed(1), **more)[0])
    assert torch.equal(*latents)


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("sd15", reference.TgateSDDeepCacheLoader),
        ("sdxl", reference.TgateSDXLDeepCacheLoader),
    ],
)
@pytest.mark.parametrize(
    ("interval", "branch", "batch", "plan"),
    [
        (3, 0, 1, GatePlan(4)),
        (2, 1, 1, GatePlan(3)),
        (3, 2, 1, GatePlan(5, 2, 2, 0)),
        (2, 0, 3, GatePlan(4, 3, 2, 1)),
    ],
)
def test_deepcache_latents_equal_the_reference(
    tiny_models, arguments, name, loader, interval, branch, batch, plan
):
    ours = tiny_models(name, scheduler="ddim")
    theirs = loader(tiny_models(name, fresh=True, scheduler="ddim"), interval, branch)
    call = arguments(ours, batch, steps=9)
    assert difference(ours, theirs, plan, call, deepcache=DeepCache(interval, branch)) == 0.0


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_deepcache_alone_equals_its_own_helper(tiny_models, arguments, name):
    from DeepCache import DeepCacheSDHelper

    ours, theirs = (
        tiny_models(name, scheduler="euler"),
        tiny_models(name, fresh=True, scheduler="euler"),
    )
    call = arguments(ours, 2)
    helper = DeepCacheSDHelper(pipe=theirs)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    with gated(ours, None, deepcache=DeepCache(3, 0)):
        assert torch.equal(ours(**call)[0], theirs(**call)[0])


def test_guidance_rescale_agrees_to_1e_5(pair, arguments):
    ours, theirs = pair("sdxl", reference.TgateSDXLLoader, "ddim")
    call = arguments(ours, 2, guidance_rescale=0.7)
    assert difference(ours, theirs, PLANS[0], call) <= 1e-5


def test_micro_conditions_follow_their_branch(tiny_models, arguments):
    """PixArt-Alpha at sample size 128 takes resolution and aspect ratio, one row a branch."""
    import diffusers

    def make():
        pipe = tiny_models("pixart_alpha", fresh=True, scheduler="ddim")
        config = dict(pipe.transformer.config) | {
            "sample_size": 128,
            "norm_type": "ada_norm_single",
        }
        torch.manual_seed(3)
        pipe.transformer = diffusers.PixArtTransformer2DModel.from_config(config).eval()
        return pipe

    ours, theirs = make(), reference.TgatePixArtAlphaLoader(make())
    assert ours.transformer.adaln_single.emb.use_additional_conditions
    for batch in (1, 3):
        assert difference(ours, theirs, PLANS[0], arguments(ours, batch)) == 0.0
