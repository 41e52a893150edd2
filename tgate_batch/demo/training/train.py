"""Train the embedded model from nothing: `python -m tgate_batch.demo.train --output DIR`.

First the autoencoder, then text encoder and denoiser together on its latents. Pictures are drawn
as training goes and each is seen about four times. README.md says what came of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch.nn import functional as F

from tgate_batch.demo import scenes
from tgate_batch.demo.training import networks
from tgate_batch.demo.training.evaluate import report_accuracy
from tgate_batch.demo.training.muon import Muon

CHUNK, CHUNKS, STEPS_PER_CHUNK = 512, 32, 32
"""Pictures drawn at a time; how many such chunks are kept; batches taken before the next one."""

BATCH = 64
CAPTION_DROPOUT = 0.1
_VAE_SHARE = 0.06  # of the minutes
_CHECKPOINT_SECONDS = 150


@dataclass
class Budget:
    """How far a stage has come, by steps or by seconds of training, also over a resume."""

    steps: int | None
    seconds: float | None
    step: int = 0
    elapsed: float = 0.0

    @property
    def progress(self) -> float:
        """0 at the start, 1 when the stage is over."""
        done = self.step / self.steps if self.steps else self.elapsed / self.seconds
        return min(done, 1.0)


class Trainer:
    """Both stages, their checkpoint, and the folder they end in."""

    def __init__(self, output: Path, seed: int, device: str, vae: Budget, denoiser: Budget):
        torch.manual_seed(seed)
        self.output, self.seed, self.device = output, seed, device
        self.budgets = {"vae": vae, "denoiser": denoiser}
        self.console = Console()
        self.tokens = networks.tokenizer()
        self.vae = networks.autoencoder().to(device, memory_format=torch.channels_last)
        self.model = torch.nn.ModuleDict(
            {"text_encoder": networks.text_encoder(self.tokens), "unet": networks.unet()}
        ).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.vae_optimizer = torch.optim.AdamW(
            self.vae.parameters(), lr=0, betas=(0.9, 0.95), weight_decay=0
        )
        inner, outer = _split(self.model)
        self.optimizers = [Muon(inner), torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0)]
        self.kept = networks.scheduler().alphas_cumprod.to(device)
        self.losses, self.gap = deque(maxlen=50), 0.0
        self.chunks: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def parts(self) -> dict:
        """All that a checkpoint holds besides the budgets."""
        return {
            "vae": self.vae,
            "model": self.model,
            "average": self.average,
            "vae_optimizer": self.vae_optimizer,
            **{f"optimizer_{i}": optimizer for i, optimizer in enumerate(self.optimizers)},
        }

    def save(self) -> None:
        """Write the checkpoint (atomically) and the pipeline's folder as it now is."""
        self.output.mkdir(parents=True, exist_ok=True)
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state["done"] = {name: (b.step, b.elapsed) for name, b in self.budgets.items()}
        state["scaling_factor"] = self.vae.config.scaling_factor
        torch.save(state, self.output / "checkpoint.tmp")
        (self.output / "checkpoint.tmp").replace(self.output / "checkpoint.pt")
        export(
            self.vae, self.average["text_encoder"], self.tokens, self.average["unet"], self.output
        )

    def resume(self) -> None:
        """Go on from the checkpoint of the output folder."""
        state = torch.load(
            self.output / "checkpoint.pt", map_location=self.device, weights_only=True
        )
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        for name, (step, elapsed) in state["done"].items():
            self.budgets[name].step, self.budgets[name].elapsed = step, elapsed
        self.vae.register_to_config(scaling_factor=state["scaling_factor"])

    def run(self, stop_after: int | None = None) -> None:
        """Train both stages to the end of their budgets, saving every few minutes.

        With `stop_after` the denoiser stops early, after that many steps, saved, to be resumed.
        """
        self._stage("vae", self._vae_step)
        self.vae.requires_grad_(False).eval()
        self._stage("denoiser", self._denoiser_step, stop_after)

    def _stage(self, name: str, advance, stop_after: int | None = None) -> None:
        budget, saved = self.budgets[name], time.monotonic()
        with Progress(
            *Progress.get_default_columns(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
        ) as bar:
            task = bar.add_task(name, total=1.0, note="")
            while budget.progress < 1 and budget.step != stop_after:
                started = time.monotonic()
                note = advance(budget)
                budget.step += 1
                budget.elapsed += time.monotonic() - started
                bar.update(task, completed=budget.progress, note=note)
                if budget.step % 100 == 0:
                    minutes = budget.elapsed / 60
                    self.console.print(f"{name} step {budget.step}, {minutes:.1f} min: {note}")
                if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
        if name == "vae" and self.budgets["denoiser"].step == 0:
            self._set_scale()
        self.save()

    def _vae_step(self, budget: Budget) -> str:
        torch.manual_seed(self.seed + 7919 * budget.step)
        progress = budget.progress
        rate = 3e-3 * min(1, (budget.step + 1) / 30) * min(1, (1 - progress) / 0.6)
        self.vae_optimizer.param_groups[0]["lr"] = rate
        side = 32 if progress < 0.75 else 64
        real = self._crops(32 if side == 32 else 16, side, budget.step)
        posterior = self.vae.encode(real).latent_dist
        error = self.vae.decode(posterior.sample()).sample - real
        around = F.avg_pool2d(F.pad(real, (2, 2, 2, 2), mode="replicate"), 5, 1)
        edge = (real - around).abs().amax(1, keepdim=True) > 0.05
        pixels = ((1 + 4 * edge) * (error.abs() + 2 * error.square())).mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        self.vae_optimizer.zero_grad()
        (pixels + 4e-3 * divergence).backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1)
        self.vae_optimizer.step()
        decibels = 10 * np.log10(4 / error.square().mean().item())
        return f"{decibels:.1f} dB, {divergence.item():.2f} nats a latent"

    def _crops(self, count: int, side: int, step: int) -> torch.Tensor:
        """`count` pictures, cut to squares of `side` pixels around one of their things."""
        seed = self.seed + step
        rng, crops = random.Random(seed), []
        for number, scene in enumerate(scenes.random_scenes(count, seed, held_out=False)):
            pixels = np.asarray(scenes.draw(scene, seed * 1000 + number))
            centre = scenes.PLACES[rng.choice(scene.things).place][1]
            x, y = (
                min(max(c - side // 2 + 4 * rng.randint(-2, 2), 0), scenes.SIDE - side)
                for c in centre
            )
            crops.append(pixels[y : y + side, x : x + side])
        return _to_tensor(crops, self.device)

    def _set_scale(self) -> None:
        self.vae.register_to_config(scaling_factor=1.0)
        latents, _ = self._encode(0)
        self.vae.register_to_config(scaling_factor=1 / latents.float().std().item())

    @torch.no_grad()
    def _encode(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (CHUNK, 8, 16, 16), scaled, and tokens (CHUNK, TOKENS) of a chunk."""
        chunk_scenes = scenes.random_scenes(
            CHUNK, self.seed + 1_000_003 * (chunk + 1), held_out=False
        )
        drawn = [scenes.draw(scene, chunk * CHUNK + i) for i, scene in enumerate(chunk_scenes)]
        latents = [
            self.vae.encode(_to_tensor(drawn[i : i + 64], self.device)).latent_dist.mode()
            for i in range(0, CHUNK, 64)
        ]
        latents = torch.cat(latents).contiguous() * self.vae.config.scaling_factor
        return latents, self._tokenized([str(scene) for scene in chunk_scenes])

    def _tokenized(self, captions: list[str]) -> torch.Tensor:
        filled = self.tokens(captions, padding="max_length", return_tensors="pt")
        return filled.input_ids.to(self.device)

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        newest = 8 + step // STEPS_PER_CHUNK
        wanted = range(max(0, newest - CHUNKS), newest)
        self.chunks = {n: self.chunks.get(n) or self._encode(n) for n in wanted}
        rows = torch.randint(CHUNK, (BATCH,))
        picked = zip(torch.randint(len(wanted), (BATCH,)).tolist(), rows.tolist(), strict=True)
        pairs = [(self.chunks[wanted[c]], row) for c, row in picked]
        latents = torch.stack([chunk[0][row] for chunk, row in pairs])
        return latents, torch.stack([chunk[1][row] for chunk, row in pairs])

    def _denoiser_step(self, budget: Budget) -> str:
        torch.manual_seed(self.seed + 104729 * (budget.step + 1))
        progress = budget.progress
        rate = min(1, (budget.step + 1) / 50) * min(1, (1 - progress) / 0.5)
        for optimizer, peak in zip(self.optimizers, (0.02, 2e-3), strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
        latents, tokens = self._batch(budget.step)
        empty = self._tokenized([""]).expand_as(tokens)
        tokens = torch.where(torch.rand(BATCH, 1).to(self.device) < CAPTION_DROPOUT, empty, tokens)
        loss = self._loss(self.model, latents, tokens, _timesteps(progress).to(self.device))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1)
        for optimizer in self.optimizers:
            optimizer.step()
        self._move_average(min(0.998, (1 + budget.step) / (10 + budget.step)))
        self.losses.append(loss.item())
        if budget.step % 100 == 99:
            self.gap = self.order_gap()
        return f"loss {np.mean(self.losses):.4f}, order gap {self.gap:.4f}"

    def _loss(self, model, latents, tokens, timesteps) -> torch.Tensor:
        """Mean squared error of the velocity."""
        kept = self.kept[timesteps][:, None, None, None]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        noise = torch.randn(latents.shape).to(self.device)
        states = model["text_encoder"](tokens).last_hidden_state
        output = model["unet"](alpha * latents + sigma * noise, timesteps, states).sample
        return F.mse_loss(output, alpha * noise - sigma * latents)

    @torch.no_grad()
    def _move_average(self, decay: float) -> None:
        for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def order_gap(self) -> float:
        """How much the loss rises at high noise when the two things of a caption change places.

        Above zero means the model knows which thing goes where.
        """
        latents, tokens = self.chunks[max(self.chunks)]
        swapped = tokens.clone()
        first, second = (
            [5, 6, 7],
            [13, 14, 15],
        )  # "on the left a LARGE RED CIRCLE and on the right a"
        swapped[:, first + second] = tokens[:, second + first]
        two = (tokens[:, 8] == self.tokens("and").input_ids[1]).nonzero()[:128, 0]
        timesteps = torch.full((len(two),), 950, device=self.device)
        losses = []
        for captions in (swapped, tokens):
            torch.manual_seed(0)
            losses.append(self._loss(self.average, latents[two], captions[two], timesteps))
        return (losses[0] - losses[1]).item()


def _split(model: torch.nn.Module) -> tuple[list, list]:
    """Hidden matrices and kernels, for Muon; embeddings, first and last layers, vectors."""
    inner, outer = [], []
    for name, weight in model.named_parameters():
        edge = any(part in name for part in ("embedding", "unet.conv_in", "unet.conv_out"))
        (outer if edge or weight.ndim < 2 else inner).append(weight)
    return inner, outer


def _timesteps(progress: float) -> torch.Tensor:
    """BATCH timesteps: mostly high noise at first (layout), later more of the middle (shape)."""
    a, b = (3.0, 1.0) if progress < 0.6 else (1.8, 1.4)
    level = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
    return (1000 * (1 - (1 - level) ** (1 / b)) ** (1 / a)).long().clamp(max=999)


def _to_tensor(images: list, device: str) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return (pixels.to(device).permute(0, 3, 1, 2) / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def export(vae, text_encoder, tokens, unet, output: Path) -> None:
    """Write the pipeline as float16 safetensors that load as float32."""
    parts = [copy.deepcopy(part).half() for part in (vae, text_encoder, unet)]
    pipe = networks.pipeline(parts[0], parts[1], tokens, parts[2])
    pipe.save_pretrained(output)
    config = output / "text_encoder" / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "dtype": "float32"}, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the pipeline")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=70, help="of training, both stages")
    length.add_argument("--steps", type=int, help="of each stage, instead of minutes")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from DIR/checkpoint.pt")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    seconds = None if chosen.steps else 60 * chosen.minutes
    budgets = [
        Budget(chosen.steps, seconds and seconds * share) for share in (_VAE_SHARE, 1 - _VAE_SHARE)
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(chosen.output, chosen.seed, device, *budgets)
    if chosen.resume:
        trainer.resume()
    trainer.run()
    report_accuracy(chosen.output)


if __name__ == "__main__":
    main()
