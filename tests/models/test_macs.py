import itertools
import json
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tgate_batch.errors import UserError
from tgate_batch.gate import (
    DeepCache,
    Forecast,
    GatePlan,
    GuidanceInterval,
    SelfAttentionInterval,
    combined,
    denoiser_of,
    gated,
)
from tgate_batch.models import catalogue
from tgate_batch.models.architecture import Architecture, ComponentSpec
from tgate_batch.models.catalogue import save_tiny
from tgate_batch.models.macs import arm as macs
from tgate_batch.models.macs.arm import count_parts, find_architecture, macs_of
from tgate_batch.models.macs.published import PUBLISHED, published_for
from tgate_batch.models.sd import FAMILY

ROOT = Path(__file__).parents[2]
TOKENS, CAPTION = 5, 12
SMALL = Architecture(
    denoiser=ComponentSpec(
        "diffusers",
        "UNet2DConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "norm_num_groups": 8,
            "attention_head_dim": 4,
            "cross_attention_dim": CAPTION,
        },
    ),
    encoders={},
    vae=ComponentSpec("diffusers", "AutoencoderKL", {"block_out_channels": (8, 8)}),
    tokens=TOKENS,
)
# (layers, picture tokens, channels): two going down and three going up at 8x8, one in the middle
LAYERS = [(5, 64, 32), (1, 16, 64)]


def count(architecture, plan, deepcache, steps, guidance_scale):
    """MACs of a picture of 16x16 pixels: the VAE here has 2 pixels a latent."""
    return macs.count(FAMILY, architecture, plan, deepcache, steps, guidance_scale, 16, 16)


def self_attention(products):
    """MACs of one branch: Q, K, V and the output; with ``products`` Q K' and P V as well."""
    return sum(n * (4 * t * c * c + products * 2 * t * t * c) for n, t, c in LAYERS)


def cross_attention(products):
    return sum(
        n * (2 * t * c * c + 2 * TOKENS * CAPTION * c + products * 2 * t * TOKENS * c)
        for n, t, c in LAYERS
    )


def acts(step, gate, sp, fi, warm_up):
    """(branches, cross reused, self reused): T-GATE's schedule, written out once more."""
    if step >= gate:
        return 1, True, step % fi != 0
    reused = step != gate - 1 and step > warm_up and step % sp != 0
    return 2, False, reused


def formula(full, steps, products, plan):
    total = 0
    for step in range(steps):
        branches, cross, self_ = acts(step, *plan)
        spared = cross * cross_attention(products) + self_ * self_attention(products)
        total += branches * (full - spared)
    return total


def test_count_is_the_closed_formula_for_every_small_plan():
    steps = 5
    plain = count(SMALL, None, None, 1, guidance_scale=1.0)
    full = plain.per_image, plain.per_image_with_attention
    for plan in itertools.product(range(1, 6), (1, 2, 3), (1, 2), (0, 1, 3)):
        counted = count(SMALL, GatePlan(*plan), None, steps, guidance_scale=7.5)
        assert counted.per_image == formula(full[0], steps, False, plan), plan
        assert counted.per_image_with_attention == formula(full[1], steps, True, plan), plan


def test_phases_add_up_and_are_divided_at_the_gate_step():
    one, plain = (count(SMALL, None, None, steps, 7.5) for steps in (1, 4))
    counted = count(SMALL, GatePlan(3), None, 4, 7.5)
    assert plain.fidelity_improving == (0, 0)
    assert plain.per_image == 4 * one.per_image
    assert counted.semantics_planning.macs == 3 * one.per_image
    assert counted.fidelity_improving.macs == one.per_image // 2 - cross_attention(False)


def test_without_guidance_one_branch_runs():
    guided, alone = (count(SMALL, None, None, 3, scale) for scale in (7.5, 1.0))
    assert guided.per_image == 2 * alone.per_image


def test_parameters_after_the_gate_leave_out_cross_attention():
    counted = count(SMALL, None, None, 1, 7.5)
    cross = sum(n * (2 * c * c + 2 * CAPTION * c + c) for n, _, c in LAYERS)  # c: output bias
    assert counted.params - counted.params_after_gate == cross


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_deepcache_runs_whole_every_interval(interval):
    cache = DeepCache(interval, 0)
    whole = count(SMALL, None, cache, 1, 7.5).per_image
    two = count(SMALL, None, DeepCache(2, 0), 2, 7.5).per_image
    skip = two - whole
    assert skip < whole / 2
    fulls = ceil(7 / interval)
    assert count(SMALL, None, cache, 7, 7.5).per_image == fulls * whole + (7 - fulls) * skip


def test_deepcache_and_gate_run_whole_on_both_sides_of_the_gate():
    full, skip = (2 * part for part in _small_steps(GatePlan(25)))
    gated_full, gated_skip = _small_steps(GatePlan(1), guidance_scale=7.5)
    # whole at 0, 3, 6, 9 before the gate at 10, and at 10, 13, 16, 19, 22 from it on
    counted = count(SMALL, GatePlan(10), DeepCache(3, 0), 25, 7.5)
    assert counted.semantics_planning.macs == 4 * full + 6 * skip
    assert counted.fidelity_improving.macs == 5 * gated_full + 10 * gated_skip


def _small_steps(plan, guidance_scale=1.0):
    """MACs of a whole and of a skipping step of one branch under ``plan``, from the gate on."""
    if plan.gate_step == 25:
        one, two = (count(SMALL, None, DeepCache(2, 0), n, guidance_scale) for n in (1, 2))
        return one.per_image, two.per_image - one.per_image
    first, second = (count(SMALL, plan, DeepCache(3, 0), n, guidance_scale) for n in (2, 3))
    whole = first.fidelity_improving.macs
    return whole, second.fidelity_improving.macs - whole


def test_a_forecast_counts_nothing_and_a_reused_difference_one_branch():
    one, self_ = count(SMALL, None, None, 1, 1.0).per_image, self_attention(False)
    rows = {
        Forecast((2, 4)): 10 - 2 * 2,
        GuidanceInterval(0, 2): 2 * 2 + 3,
        GuidanceInterval(0, 2, "reuse"): 2 * 2 + 3,
        GuidanceInterval(0, 2, "reuse", every=2): 3 * 2 + 2,
        GuidanceInterval(weights=(4.0, 1.0), scale=4.0): 2 + 4,
        combined(GuidanceInterval(0, 2), Forecast((3,))): 2 * 2 + 2,
    }
    for plan, branches in rows.items():
        assert count(SMALL, plan, None, 5, 7.5).per_image == branches * one, plan
    plan = combined(GuidanceInterval(0, 2, "reuse"), SelfAttentionInterval(4))
    reused = 2 + 2 * 1  # branches: both at step 1, one at steps 2 and 3
    assert count(SMALL, plan, None, 5, 7.5).per_image == 7 * one - reused * self_


NEW = [
    Forecast((2, 4)),
    combined(GatePlan(4, 2, 2, 1), Forecast((2, 3))),
    combined(GuidanceInterval(0, 2, "reuse", every=2), SelfAttentionInterval(3)),
    combined(GuidanceInterval(weights=(5.0, 3.0), scale=5.0), Forecast((2, 3), order=2)),
]


@pytest.mark.parametrize("plan", NEW, ids=str)
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_every_new_kind_counts_what_the_calls_really_multiply(plan, scheduler):
    """Against ``torch.utils.flop_counter`` over the denoiser's own calls in a pipeline call."""
    import diffusers
    import torch

    pipe = catalogue.tiny("sd15")
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    own, flops = pipe.unet.forward, []

    def counted(*args, **kwargs):
        with FlopCounterMode(display=False) as counter:
            output = own(*args, **kwargs)
        flops.append(counter.get_total_flops() // 2)
        return output

    text = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
    pipe.unet.forward = counted
    with gated(pipe, plan, guided=True):
        pipe(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            num_inference_steps=6,
            guidance_scale=5.0,
            height=64,
            width=64,
            output_type="latent",
        )
    del pipe.unet.forward
    architecture = Architecture(
        denoiser=ComponentSpec("diffusers", "UNet2DConditionModel", dict(pipe.unet.config)),
        encoders={},
        vae=ComponentSpec("diffusers", "AutoencoderKL", dict(pipe.vae.config)),
        scheduler=ComponentSpec("diffusers", scheduler, {}),
        tokens=77,
    )
    macs_counted = macs.count(FAMILY, architecture, plan, None, 6, 5.0, 64, 64)
    assert macs_counted.per_image_with_attention == sum(flops)


def test_a_second_order_scheduler_calls_the_denoiser_twice_a_step():
    heun = replace(SMALL, scheduler=ComponentSpec("diffusers", "HeunDiscreteScheduler", {}))
    calls = 2 * 5 - 1  # the last step has no correction
    assert (
        count(heun, None, None, 5, 7.5).per_image == count(SMALL, None, None, calls, 7.5).per_image
    )


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("sd15", None),
        ("sd15", GatePlan(3, 2, 2, 1)),
        ("sdxl", GatePlan(3, 2, 2, 1)),
        ("lcm_sdxl", GatePlan(1)),
        ("pixart_alpha", GatePlan(3, 2, 2, 1)),
        ("pixart_sigma", GatePlan(3, 2, 2, 1)),
        ("playground25", GatePlan(3, 2, 2, 1)),
        ("ssd_1b", GatePlan(3, 2, 2, 1)),
        ("vega", GatePlan(3, 2, 2, 1)),
        ("kolors", GatePlan(3, 2, 2, 1)),
        ("sana", None),
        ("sana", GatePlan(3, 2, 2, 1)),
        ("wan21", None),
    ],
)
def test_count_of_a_folder_is_what_its_pipeline_runs(name, plan, tmp_path):
    save_tiny(name, tmp_path)
    pipe, scale = catalogue.tiny(name), 1.0 if name.startswith("lcm") else 4.5
    size = {"height": 64, "width": 64}
    options = {"guidance_scale": scale, "num_inference_steps": 5, "output_type": "latent"}
    if "pixart" in name or name == "sana":
        options["use_resolution_binning"] = False
    denoiser_of(pipe).requires_grad_(False)  # the counter follows what has gradients
    with gated(pipe, plan, guided=scale > 1), FlopCounterMode(display=False) as counter:
        pipe("a", **size, **options)
    counted = macs_of(name, str(tmp_path), plan=plan, steps=5, guidance_scale=scale, **size)
    ran = counter.get_flop_counts()[type(denoiser_of(pipe)).__name__]
    assert counted.per_image_with_attention == sum(ran.values()) // 2


@pytest.mark.parametrize("name", ["sd15", "sdxl", "kolors", "pixart_alpha", "sana", "svd", "wan21"])
def test_parts_of_a_folder_are_its_encoders_and_its_vae(name, tmp_path):
    save_tiny(name, tmp_path)
    family, architecture = catalogue.family_of(name), find_architecture(name, str(tmp_path))
    parts = count_parts(family, architecture, guided=True, height=64, width=64)
    pipe = catalogue.tiny(name)
    for part, (counted, params) in parts.items():
        assert counted.macs > 0
        assert params == sum(p.numel() for p in getattr(pipe, part).parameters())


def test_a_model_without_an_architecture_or_a_folder_says_so():
    with pytest.raises(UserError, match="unknown model 'flux'"):
        macs_of("flux", steps=5, guidance_scale=7.5)
    with pytest.raises(UserError, match="'demo' is unknown without its files"):
        macs_of("demo", "some/finetune", steps=5, guidance_scale=7.5)


def test_a_hub_id_of_a_known_model_is_counted_by_its_name():
    assert find_architecture("sd15", "some/finetune") is catalogue.entry("sd15").architecture


def test_a_folder_without_a_pipeline_says_so(tmp_path):
    with pytest.raises(UserError, match="not a diffusers folder"):
        macs_of("sd15", str(tmp_path), steps=5, guidance_scale=7.5)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="holds no parts"):
        macs_of("sd15", str(tmp_path), steps=5, guidance_scale=7.5)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        macs_of("sd15", str(tmp_path), steps=5, guidance_scale=7.5)


def test_settings_that_the_gate_refuses_are_a_users_error(tmp_path):
    save_tiny("pixart_alpha", tmp_path)
    with pytest.raises(UserError, match="DeepCache"):
        macs_of("pixart_alpha", str(tmp_path), deepcache=DeepCache(), steps=5, guidance_scale=4.5)


def test_eighteen_figures_were_published_each_for_settings_of_its_own():
    settings = {(row.model, row.plan, row.deepcache) for row in PUBLISHED}
    assert len(PUBLISHED) == len(settings) == 18
    for row in PUBLISHED:
        settings = row.plan, row.deepcache, row.steps, row.guidance_scale
        assert published_for(row.model, *settings) is row
    assert published_for("sdxl", GatePlan(7), None, 25, 7.5) is None
    assert published_for("sdxl", None, None, 25, 1.0) is None


def test_published_figures_of_stable_diffusion_are_reproduced():
    for row in PUBLISHED[:2]:
        counted = macs_of("sd15", plan=row.plan, steps=25, guidance_scale=7.5)
        params = counted.params if row.plan is None else counted.params_after_gate
        assert counted.per_image / 1e12 == pytest.approx(row.macs_t, rel=5e-4)
        assert params / 1e6 == pytest.approx(row.params_m, rel=1.5e-3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("sd21", 865_910_724), ("sdxl", 2_567_463_684), ("svd", 1_524_623_082)],
)
def test_architectures_have_the_parameters_of_their_checkpoints(name, parameters):
    counted = macs_of(name, steps=1, guidance_scale=1.0)
    assert counted.params == parameters


@pytest.mark.slow
def test_job_reproduces_every_published_figure():
    found = subprocess.run(
        [sys.executable, "jobs/macs.py", "--json"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    rows = json.loads(found.stdout)
    assert len(rows) == 18
    for row in rows:
        assert abs(row["relative_error"]) < 5e-4, row
        if row["published_params_m"]:
            assert row["params_m"] == pytest.approx(row["published_params_m"], rel=1.5e-3)
        fitted = "documented_macs_t" in row
        assert fitted == ("not documented" in (row["note"] or ""))
        if fitted:
            assert abs(row["documented_relative_error"]) > 0.02
    with_attention = {
        row["model"]: row["macs_with_attention_t"] for row in rows if row["arm"] == "baseline"
    }
    for model, figure in {"sdxl": 169.03, "pixart_alpha": 162.74, "pixart_sigma": 165.84}.items():
        assert with_attention[model] == pytest.approx(figure, rel=1e-3)


SD15_CONTROL = ComponentSpec(
    "diffusers",
    "ControlNetModel",
    {  # lllyasviel/control_v11p_sd15_canny, config.json
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
)


def test_a_controlnet_is_gated_and_counted_as_its_denoiser_is():
    """A gate at 10 of 25 steps runs 35 rows of 50, and reused attention comes on top."""
    family, plain = catalogue.family_of("sd15"), catalogue.entry("sd15").architecture
    steered = replace(plain, controlnet=SD15_CONTROL)
    settings = {"steps": 25, "guidance_scale": 7.5, "height": 512, "width": 512}
    before, after = (
        {
            "alone": macs.count(family, plain, plan, None, **settings).per_image,
            "both": macs.count(family, steered, plan, None, **settings).per_image,
        }
        for plan in (None, GatePlan(10))
    )
    control = before["both"] - before["alone"]
    assert control / before["alone"] == pytest.approx(0.344, abs=0.001)
    assert before["both"] / after["both"] == pytest.approx(1.456, abs=0.001)
    assert before["both"] / after["both"] > 50 / 35
    alone = after["alone"] + control  # were the ControlNet not gated
    assert before["both"] / alone == pytest.approx(1.303, abs=0.001)
