"""Rows of differing guidance in one batch: each gets the bits of a batch of its own scale."""

import pytest
import torch

from tgate_batch.config import Arm, Model, Sampling, effective_sampling
from tgate_batch.models import catalogue
from tgate_batch.models.guidance import RowScales, scale_of
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.models.resolve import mixes_guidance
from tgate_batch.records import Prompt, RowSettings

SCALES = [1.5, 7.5, 4.3]
MIXING = [
    "sd15",
    "sd21",
    "sdxl",
    "playground25",
    "ssd_1b",
    "vega",
    "kolors",
    "pixart_alpha",
    "pixart_sigma",
    "lcm_pixart_alpha",
    "sana",
    "wan21",
]
ARMS = {
    "plain": Arm(),
    "gated": Arm(gate_step=2, sp_interval=2),
    "interval": Arm(guidance_from=1, guidance_until=2),
}


def runner(name: str, **more) -> PipelineRunner:
    sampling = catalogue.resolve(name, Sampling(steps=3, height=64, width=64, **more))
    return PipelineRunner(catalogue.tiny(name), catalogue.family_of(name), sampling)


def latents(made: PipelineRunner, scales: list[float], arm: Arm = Arm()) -> torch.Tensor:  # noqa: B008
    """Three pictures under these scales, one batch."""
    texts = ["a red cat", "two dogs", "a boat"]
    prompts = [
        Prompt(text, text, overrides=RowSettings(guidance_scale=scale))
        for text, scale in zip(texts, scales, strict=True)
    ]
    conditions = made.encode(prompts)
    with made.applying(arm, effective_sampling(made.sampling, row=prompts[0].overrides)):
        return made.denoise(conditions, [1, 2, 3])


@pytest.mark.parametrize("name", sorted(set(MIXING) & set(catalogue.CATALOGUE)))
@pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
def test_a_row_has_the_bits_of_a_batch_of_its_own_scale(name, arm):
    made = runner(name)
    mixed = latents(made, SCALES, arm)
    for row, scale in enumerate(SCALES):
        uniform = latents(made, [scale] * 3, arm)
        assert torch.equal(mixed[row], uniform[row])
    assert not torch.equal(mixed[0], uniform[0])


@pytest.mark.parametrize("name", ["sd15", "sdxl", "kolors", "pixart_alpha", "sana", "wan21"])
def test_each_row_is_led_away_from_its_own_negative_prompt(name):
    made = runner(name)
    negatives = ["blurry", None, "a very dark and long picture"]

    def drawn(chosen: list[str | None]) -> torch.Tensor:
        overrides = [RowSettings(negative_prompt=text) for text in chosen]
        prompts = [
            Prompt(str(row), "a red cat", overrides=one) for row, one in enumerate(overrides)
        ]
        conditions = made.encode(prompts)
        with made.applying(Arm()):
            return made.denoise(conditions, [1, 2, 3])

    mixed = drawn(negatives)
    for row, text in enumerate(negatives):
        assert torch.equal(mixed[row], drawn([text] * 3)[row])
    assert not torch.equal(mixed[0], drawn([None] * 3)[0])


def test_every_family_that_mixes_is_tried():
    mixing = {name for name in catalogue.CATALOGUE if mixes_guidance(Model(name=name))}
    assert {catalogue.family_of(name).denoiser for name in mixing} == {"unet", "transformer"}
    tried = {id(catalogue.family_of(name)) for name in set(MIXING) & set(catalogue.CATALOGUE)}
    assert {id(catalogue.family_of(name)) for name in mixing} == tried


def test_guidance_rescaled_is_rescaled_row_by_row():
    made = runner("sdxl")
    made.family = type(made.family)(
        **{name: getattr(made.family, name) for name in made.family.__dataclass_fields__}
        | {"call": {"guidance_rescale": 0.7}}
    )
    mixed = latents(made, SCALES)
    for row, scale in enumerate(SCALES):
        assert torch.equal(mixed[row], latents(made, [scale] * 3)[row])


def test_a_model_that_embeds_the_scale_keeps_its_rows_apart():
    made = runner("lcm_sdxl")
    assert not mixes_guidance(Model(name="lcm_sdxl"))
    one, two = (
        effective_sampling(made.sampling, row=RowSettings(guidance_scale=scale))
        for scale in (4.0, 8.0)
    )
    assert made.batch_settings(one) != made.batch_settings(two)
    with pytest.raises(TypeError, match="cannot share a batch"):
        latents(made, [4.0, 8.0, 8.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_that_of_each_rows_number(dtype):
    rows = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scales = RowScales([1.1, 7.3, 1 / 3])
    for product in (scales * rows, rows * scales):
        assert product.dtype is dtype
        for row, scale in enumerate([1.1, 7.3, 1 / 3]):
            assert torch.equal(product[row], (scale * rows)[row])


def test_scales_compare_as_the_largest_and_refuse_what_no_row_could_mean():
    scales = RowScales([2.0, 3.0])
    assert scales > 2.5
    for act in (
        lambda: scales - 1,
        lambda: 1 + scales,
        lambda: scales / 2,
        lambda: scales * 2,
        lambda: scales * torch.tensor(2.0),
        lambda: torch.ones(2, 1) + scales,
        lambda: torch.ones(2, 1) / scales,
    ):
        with pytest.raises(TypeError, match="differing guidance"):
            act()
    with pytest.raises(ValueError, match="2 guidance scales for a batch of 3"):
        scales * torch.zeros(3, 1)


def test_equal_scales_are_a_plain_number():
    assert type(scale_of([3.0, 3.0])) is float
    assert type(scale_of([3.0, 2.0])) is RowScales
