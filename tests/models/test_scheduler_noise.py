"""Whichever scheduler of diffusers draws, the noise of a picture is of its own seed alone."""

import io
from contextlib import nullcontext
from importlib import import_module

import diffusers
import pytest
import torch
from PIL import Image

from tgate_batch.errors import UserError
from tgate_batch.models import pipeline_runner, schedulers
from tgate_batch.models.architecture import class_names
from tgate_batch.records import Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = sorted(name for name in class_names("schedulers") if name.endswith("Scheduler"))
SDE = {"algorithm_type": "sde-dpmsolver++"}
# What makes these draw noise, which draw none by themselves.
STOCHASTIC = {
    "DPMSolverMultistepScheduler": SDE,
    "DPMSolverMultistepInverseScheduler": SDE,
    "DPMSolverSinglestepScheduler": SDE,
    "EDMDPMSolverMultistepScheduler": SDE,
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling": True},
}
# No pipeline of ours can run these: they are of other kinds of models.
FOREIGN = {
    *("AmusedScheduler", "BlockRefinementScheduler", "CogVideoXDPMScheduler"),
    *("ConsistencyDecoderScheduler", "DDPMWuerstchenScheduler", "DiscreteDDIMScheduler"),
    *("EntropyBoundScheduler", "HeliosDMDScheduler", "HeliosScheduler", "KarrasVeScheduler"),
    *("PiflowScheduler", "RFD4ProteinaScheduler", "RePaintScheduler", "SCMScheduler"),
    *("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "UnCLIPScheduler", "VQDiffusionScheduler"),
}
FLOW = {
    *("FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "MiniMaxH3Scheduler"),
    *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"),
}
# Those of the others that a family cannot run. Wan predicts a flow, and two others do not.
CANNOT = {
    "sd15": FLOW,
    "svd": FLOW
    | {
        *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
        *("HeunDiscreteScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
    },
    "wan21": {
        *("CosineDPMSolverMultistepScheduler", "CogVideoXDDIMScheduler", "DDIMInverseScheduler"),
        *("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler"),
        *("DPMSolverMultistepInverseScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler"),
        *("EDMDPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "IPNDMScheduler"),
        *("EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
        *("KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler"),
        "TCDScheduler",
    },
}


@pytest.fixture
def drawn(tiny_runner):
    """``drawn(family, name, options)``: the latents of two pictures, A and B, in three batches.

    Each is a pair of (A's rows, B's rows). Raises what the scheduler raises.
    """

    def of(family: str, name: str, options: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
        one = tiny_runner(family, 4)
        prompts = [Prompt("a", "a cat", _ramp(0)), Prompt("b", "two dogs", _ramp(90))]
        a, b = zip(one.encode(prompts), (1, 2), strict=True)
        own, found = one.pipeline.scheduler, []
        try:
            for order in ("abab", "bbba", "baaa"):
                one.pipeline.scheduler = getattr(diffusers, name).from_config(own.config, **options)
                rows = [a if which == "a" else b for which in order]
                torch.manual_seed(len(found))  # a process has drawn something else before
                latents = one.denoise(*map(list, zip(*rows, strict=True)))
                places = torch.tensor([which == "a" for which in order])
                found.append((latents[places], latents[~places]))
        finally:
            one.pipeline.scheduler = own
        return found

    return of


@pytest.mark.parametrize("family", ["sd15", "wan21", pytest.param("svd", marks=pytest.mark.slow)])
def test_noise_of_a_row_is_of_its_seed_alone_under_every_scheduler(drawn, family):
    """Wan and Stable Video Diffusion give their scheduler no generators, the others do."""
    moved, cannot = [], set()
    for name in NAMES:
        try:
            batches = {"": drawn(family, name, {})}
        except Exception:  # each has its own reason
            cannot.add(name)
            continue
        if name in STOCHASTIC:
            batches["stochastic"] = drawn(family, name, STOCHASTIC[name])
            pairs = zip(*batches.values(), strict=True)
            assert not any(_equal(plain[0], noisy[0]) for plain, noisy in pairs)
        moved += [
            f"{name} {how}"
            for how, found in batches.items()
            if not all(_equal(*rows) for rows in zip(*found, strict=True))
        ]
    assert not moved
    assert cannot == FOREIGN | CANNOT[family]


@pytest.mark.parametrize(
    ("family", "name"),
    [("sd15", "DPMSolverSDEScheduler"), ("svd", "LCMScheduler"), ("wan21", "SASolverScheduler")],
)
def test_noise_left_to_the_pipeline_would_be_the_batchs(drawn, monkeypatch, family, name):
    """What rows' own noise is for: diffusers draws these from the process, or for a whole batch."""
    monkeypatch.setattr(pipeline_runner, "noise_by_row", lambda *_: nullcontext())
    found = drawn(family, name, {})
    assert not any(_equal(*rows) for rows in zip(*found, strict=True))


def test_a_scheduler_is_as_it_was_after_a_batch(drawn, tiny_runner):
    before = vars(tiny_runner("sd15", 4).pipeline.scheduler).keys()
    scheduler = diffusers.DPMSolverSDEScheduler(noise_sampler_seed=7)
    with pipeline_runner.noise_by_row(scheduler, [torch.Generator().manual_seed(3)]):
        assert scheduler.noise_sampler_seed == [3]
    assert scheduler.noise_sampler_seed == 7
    drawn("sd15", "DDIMScheduler", {})
    assert vars(tiny_runner("sd15", 4).pipeline.scheduler).keys() == before


def test_a_scheduler_whose_library_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(schedulers, "find_spec", lambda name: None)
    for library in ("scipy", "torchsde"):
        stand_ins = import_module(f"diffusers.utils.dummy_torch_and_{library}_objects")
        names = [name for name in vars(stand_ins) if name.endswith("Scheduler")]
        assert names
        for name in names:
            with pytest.raises(UserError, match=f"^arms.b.scheduler: {name} needs {library}, "):
                schedulers.check_name(name, "arms.b.scheduler")
    schedulers.check_name("DDIMScheduler", "arms.b.scheduler")


def _equal(*rows: torch.Tensor) -> bool:
    """Whether all rows are one, bit for bit."""
    together = torch.cat(rows).nan_to_num()
    return torch.equal(together, together[:1].expand_as(together))


def _ramp(degrees: int) -> bytes:
    content = io.BytesIO()
    Image.linear_gradient("L").rotate(degrees).convert("RGB").save(content, "PNG")
    return content.getvalue()
