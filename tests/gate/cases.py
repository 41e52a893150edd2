"""Random pipeline calls for the oracle: tiny pipelines in float64, and what they are given."""

import inspect
import random
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from oracle import SIZE, Case

from tgate_batch.models import catalogue

KIN = ["playground25", "ssd_1b", "vega", "kolors", "sana", "wan21"]
TEXT = ["sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "lcm_sdxl", "lcm_pixart_alpha"]
STEERED = ["sd15", "sdxl"]  # those that ControlNets and image-to-image are tried on
SCHEDULERS = [
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "sde-dpmsolver++",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
]
FLOWS = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
_TOKENS = 7


@dataclass(frozen=True)
class Call:
    """A pipeline, what it is called with, and the same as a case for the oracle."""

    pipe: Any
    arguments: dict[str, Any]
    case: Case
    words: str  # what it is, for a message

    def run(self, **other: Any) -> torch.Tensor:
        """The pipeline's latents."""
        generator = torch.Generator().manual_seed(self.case.seed)
        takes = inspect.signature(self.pipe.__call__).parameters
        noise = {"generator": generator, "eta": self.case.eta}
        noise = {name: noise[name] for name in noise if name in takes}
        return self.pipe(**self.arguments | noise | other)[0]


class Cases:
    """Makes calls; each tiny model is made once."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}
        self._controls: dict[tuple[str, int], Any] = {}

    def model(self, name: str) -> Any:
        if name not in self._models:
            pipe = catalogue.tiny(name)
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module) and part is not pipe.vae:
                    part.double()
            self._models[name] = pipe, pipe.scheduler
        pipe, scheduler = self._models[name]
        pipe.scheduler = scheduler
        return pipe

    def control(self, name: str, seed: int) -> Any:
        """A ControlNet whose zero convolutions are none, so that it has a say."""
        if (name, seed) not in self._controls:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                made = diffusers.ControlNetModel.from_unet(
                    self._models[name][0].unet, conditioning_embedding_out_channels=(8, 8, 16, 16)
                )
                for parameter in made.parameters():
                    if not parameter.any():
                        torch.nn.init.normal_(parameter, std=0.1)
            self._controls[name, seed] = made.eval().double()
        return self._controls[name, seed]

    def random(self, chance: random.Random, names: list[str]) -> Call:
        """A call of one of these pipelines, whatever it takes."""
        name = chance.choice(names)
        steered = name in STEERED
        scheduler = chance.choice(FLOWS if name in ("sana", "wan21") else SCHEDULERS)
        # The timesteps of EDM are no part of 1000, of which `denoising_end` is one.
        ends = [None, 0.5, 0.8] if name == "sdxl" and "EDM" not in scheduler else [None]
        return self.call(
            name,
            scheduler=scheduler,
            seed=chance.randrange(1000),
            steps=chance.randint(3, 9),
            batch=chance.randint(1, 3),
            guidance=chance.choice([1.0, 4.5, 7.5]),
            rescale=chance.choice([0.0, 0.0, 0.7]) if name in ("sd15", "sdxl") else 0.0,
            eta=chance.choice([0.0, 0.5]) if name not in ("kolors", "wan21") else 0.0,
            strength=chance.choice([None, None, 0.5, 0.8]) if steered else None,
            denoising_end=chance.choice(ends),
            nets=chance.choice([0, 0, 1, 2]) if steered else 0,
            guess_mode=chance.random() < 0.4,
            control_end=chance.choice([1.0, 0.6]),
        )

    def call(
        self,
        name: str,
        scheduler: str | None = None,
        seed: int = 0,
        steps: int = 6,
        batch: int = 1,
        guidance: float = 7.5,
        rescale: float = 0.0,
        eta: float = 0.0,
        strength: float | None = None,
        denoising_end: float | None = None,
        nets: int = 0,
        guess_mode: bool = False,
        control_end: float = 1.0,
        plan: tuple = (1000, 1, 1, 0),
    ) -> Call:
        pipe = self.model(name)
        pipe.scheduler = _scheduler(pipe.scheduler, scheduler)
        if nets:  # guidance is not rescaled there, and the loop does not end early
            rescale, denoising_end = 0.0, None
        if strength is not None:
            rescale = 0.0 if name == "sd15" else rescale  # which takes none
            denoising_end = denoising_end and 0.8  # half of it leaves half the strength nothing
        words = {key: value for key, value in locals().items() if key not in ("self", "pipe")}
        kind = _kind(pipe, strength, nets)
        generator = torch.Generator().manual_seed(seed)
        text = _text(name, pipe, batch, generator), _text(name, pipe, batch, generator)
        start = _start(name, pipe, batch, generator)
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "output_type": "latent",
        } | _names(text)
        if strength is None:
            arguments |= {"height": SIZE, "width": SIZE, "latents": start}
        else:
            arguments |= {"image": start, "strength": strength}
        arguments |= {"guidance_rescale": rescale} if rescale else {}
        arguments |= {"denoising_end": denoising_end} if denoising_end else {}
        if name == "wan21":
            arguments["num_frames"] = 5
        elif hasattr(pipe, "transformer"):
            arguments |= {"use_resolution_binning": False, "negative_prompt": None}
        hints = tuple(
            torch.rand(batch, 3, SIZE, SIZE, generator=generator).double() for _ in range(nets)
        )
        scales = (0.8, 0.5)[:nets]
        if nets:
            arguments |= {
                "image" if strength is None else "control_image": list(hints)
                if nets > 1
                else hints[0],
                "controlnet_conditioning_scale": list(scales) if nets > 1 else scales[0],
                "control_guidance_end": control_end,
                "guess_mode": guess_mode,
            }
            controls = [self.control(name, number) for number in range(nets)]
            pipe = kind.from_pipe(
                pipe, controlnet=controls if nets > 1 else controls[0], torch_dtype=torch.float64
            )
        elif kind is not type(pipe):
            pipe = kind.from_pipe(pipe, torch_dtype=torch.float64)
        pipe.set_progress_bar_config(disable=True)
        case = Case(
            steps,
            text,
            start,
            plan,
            guidance,
            rescale,
            eta,
            seed,
            strength,
            denoising_end,
            controls=tuple(controls) if nets else (),
            hints=hints,
            scales=scales,
            control_end=control_end,
            guess_mode=guess_mode and nets > 0,
        )
        return Call(pipe, arguments, case, str(words))


def random_plan(chance: random.Random, steps: int) -> tuple:
    gate = chance.choice([chance.randint(1, steps + 2), round(chance.uniform(0.05, 0.95), 2)])
    return gate, chance.randint(1, 4), chance.randint(1, 4), chance.randint(0, 4)


def _scheduler(own: Any, name: str | None) -> Any:
    if name is None:
        return type(own).from_config(own.config)
    if name == "sde-dpmsolver++":
        kind = diffusers.DPMSolverMultistepScheduler
        return kind.from_config(own.config, algorithm_type=name)
    kind = getattr(diffusers, name)
    more = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    return kind.from_config(own.config, **more)


def _kind(pipe: Any, strength: float | None, nets: int) -> Any:
    if not hasattr(pipe, "unet") or (strength is None and not nets):
        return type(pipe)
    parts = [
        "StableDiffusion",
        "XL" if hasattr(pipe, "text_encoder_2") else "",
        "ControlNet" if nets else "",
        "Img2Img" if strength is not None else "",
        "Pipeline",
    ]
    return getattr(diffusers, "".join(parts))


def _text(name: str, pipe: Any, batch: int, generator: Any) -> dict[str, torch.Tensor]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).double()

    width = 32
    if hasattr(pipe, "unet"):
        config = pipe.unet.config
        width = config.encoder_hid_dim or config.cross_attention_dim
    text = {"prompt_embeds": noise(_TOKENS, width)}
    if hasattr(pipe, "unet") and pipe.unet.config.addition_embed_type is not None:
        text["pooled_prompt_embeds"] = noise(32)
    if hasattr(pipe, "transformer") and name != "wan21":
        least = torch.randint(2, _TOKENS + 1, (batch, 1), generator=generator)
        text["prompt_attention_mask"] = (torch.arange(_TOKENS)[None] < least).double()
    return text


def _names(text: tuple) -> dict[str, torch.Tensor]:
    return text[1] | {f"negative_{name}": value for name, value in text[0].items()}


def _start(name: str, pipe: Any, batch: int, generator: Any) -> torch.Tensor:
    if name == "wan21":
        return torch.randn(batch, 4, 2, 8, 8, generator=generator)
    if name == "sana":
        return torch.randn(batch, 4, 2, 2, generator=generator)
    return torch.randn(batch, 4, 8, 8, generator=generator).double()
