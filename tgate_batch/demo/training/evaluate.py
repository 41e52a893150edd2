"""Render held-out captions and read the pictures back: `python -m tgate_batch.demo.evaluate`.

Each plan is compared with the ungated run, caption by caption and with the same noise. Prompt
accuracy is the figure of quality here: a Frechet distance to the drawn pictures cannot tell a
right picture from a wrong one, only likely from unlikely.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from benchmarks.timing import in_turns
from tgate_batch import demo
from tgate_batch.config import Arm, Model, Sampling
from tgate_batch.demo import scenes
from tgate_batch.gate import gated
from tgate_batch.models import catalogue
from tgate_batch.models.schedulers import build_scheduler

STEPS, GUIDANCE, BATCH = 25, 4.0, 25
PLANS = ("1", "3", "5", "8", "8/5", "10", "10/5", "12", "15", "15/3", "15/5", "20", "20/3", "25")
"""gate_step[/sp_interval[/fi_interval]]; and steps:NUMBER[:SCHEDULER], guidance:FROM-TO"""

UNGATED = Arm()
_CAPTIONS_SEED = 20_251_121
_WARM_UP = 2


def load(folder: Path = demo.PATH) -> StableDiffusionPipeline:
    """The pipeline of a folder, without its progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def captions(count: int) -> list[str]:
    """`count` different captions, none of whose combinations was in training."""
    sampled = map(str, scenes.random_scenes(2 * count + 100, _CAPTIONS_SEED, held_out=True))
    return list(dict.fromkeys(sampled))[:count]


def arm_of(text: str) -> Arm:
    """An arm written as one of ``PLANS``."""
    kind, _, settings = text.partition(":")
    if kind == "steps":
        steps, _, scheduler = settings.partition(":")
        return Arm(steps=int(steps), scheduler=scheduler or None)
    if kind == "guidance":
        first, until = settings.split("-")
        return Arm(guidance_from=int(first), guidance_until=int(until))
    names = ("gate_step", "sp_interval", "fi_interval")
    plan = dict(zip(names, map(int, text.split("/")), strict=False))
    return Arm(**plan, warm_up=_WARM_UP if len(plan) > 1 else 0)


def render(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    arm: Arm = UNGATED,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture a prompt; the noise of a picture depends on its number in the list alone."""
    images, own = [], pipe.scheduler
    if arm.scheduler is not None:
        pipe.scheduler = build_scheduler(arm.scheduler, own)
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        noise = [torch.Generator().manual_seed(start + number) for number in range(len(part))]
        with gated(pipe, arm.combined_plan, guided=guidance > 1):
            images += pipe(
                part,
                num_inference_steps=arm.steps or STEPS,
                guidance_scale=guidance,
                generator=noise,
            ).images
    pipe.scheduler = own
    return images


def through_vae(pipe: StableDiffusionPipeline, images: list[Image.Image]) -> list[Image.Image]:
    """The pictures, encoded and decoded: what no denoiser can be better than."""
    restored = []
    for start in range(0, len(images), BATCH):
        pixels = pipe.image_processor.preprocess(images[start : start + BATCH]).to(pipe.device)
        with torch.no_grad():
            decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample
        restored += pipe.image_processor.postprocess(decoded)
    return restored


def accuracy(images: list[Image.Image], prompts: list[str]) -> dict[str, np.ndarray]:
    """Aspect -> whether it holds (1.0 or 0.0), picture by picture."""
    checks = list(map(scenes.check, images, prompts))
    return {
        aspect: np.array([float(check[aspect]) for check in checks]) for aspect in scenes.ASPECTS
    }


def means(shares: dict[str, np.ndarray]) -> dict[str, float]:
    """Aspect -> its share of all pictures."""
    return {aspect: round(float(values.mean()), 4) for aspect, values in shares.items()}


def report_accuracy(folder: Path, count: int = 200) -> dict[str, float]:
    """Print and return the ungated accuracy of the pipeline in a folder."""
    pipe, prompts = load(folder), captions(count)
    shares = means(accuracy(render(pipe, prompts), prompts))
    print(f"{count} held-out captions, {STEPS} steps, guidance {GUIDANCE:g}: {shares}")
    return shares


def sweep(folder: Path, plans: list[str], count: int, output: Path | None = None) -> list[dict]:
    """A row for the drawn pictures, the autoencoder, the ungated run and each plan.

    A row holds its accuracy; a rendered one also `macs` (of one picture, with attention); a plan's
    also `difference` and 95% `interval` of all-at-once to the ungated run, PSNR (dB), and Frechet
    distances on EfficientNet-Lite0 features. Their changes have no interval: it would take 3,840
    captions. Written to `output` after each row, as JSON.
    """
    from tgate_batch.metrics.features import load_extractor
    from tgate_batch.metrics.frechet import Statistics, frechet_distance
    from tgate_batch.metrics.jackknife import GROUPS, groups, paired_shares
    from tgate_batch.metrics.pairs import paired
    from tgate_batch.metrics.psnr import psnr
    from tgate_batch.models.macs.arm import macs_of_arm

    pipe, prompts, rows = load(folder), captions(count), []
    extractor = load_extractor("efficientnet-lite0", device=str(pipe.device))

    def add(name: str, images: list[Image.Image], **more) -> dict[str, np.ndarray]:
        shares = accuracy(images, prompts)
        rows.append({"name": name, "captions": count, **means(shares), **more})
        print(json.dumps(rows[-1]), flush=True)
        if output:
            output.write_text(json.dumps(rows, indent=1) + "\n")
        return shares

    drawn = [scenes.draw(prompt, seed) for seed, prompt in enumerate(prompts)]
    add("drawn", drawn)
    add("autoencoder", through_vae(pipe, drawn))
    real = Statistics.of(extractor(drawn))
    other = [scenes.draw(prompt, 10**6 + seed) for seed, prompt in enumerate(prompts)]
    rows[0]["fd_drawn"] = round(frechet_distance(Statistics.of(extractor(other)), real), 3)

    def rendered(arm: Arm) -> tuple[list[Image.Image], dict]:
        sampling = catalogue.resolve("demo", Sampling(steps=STEPS, guidance_scale=GUIDANCE))
        macs = macs_of_arm(Model(name="demo", path=str(folder)), arm, sampling)
        return render(pipe, prompts, arm), {"macs": macs.per_image_with_attention}

    baseline, cost = rendered(UNGATED)
    ungated = Statistics.of(extractor(baseline))
    cost["fd_drawn"] = round(frechet_distance(ungated, real), 3)
    before = add("ungated", baseline, **cost)
    for text in plans:
        images, cost = rendered(arm_of(text))
        now, apart = (
            Statistics.of(extractor(images)),
            accuracy(images, prompts)["all"] - before["all"],
        )
        count_of = partial(np.bincount, groups(np.arange(count)), minlength=GROUPS)
        change = paired_shares(count_of(), count_of(apart > 0), count_of(apart < 0))
        add(
            text,
            images,
            **cost,
            difference=round(change.value, 4),
            interval=[round(bound, 4) for bound in (change.low, change.high)],
            psnr=round(float(np.mean(paired(psnr)(images, prompts, baseline))), 2),
            fd_ungated=round(frechet_distance(now, ungated), 3),
            fd_drawn=round(frechet_distance(now, real), 3),
        )
    return rows


def times(folder: Path, plans: list[str], batch: int = 10, rounds: int = 5) -> dict[str, float]:
    """Median seconds a picture, ungated and by plan, in turns; one batch a call, all threads."""
    pipe, prompts = load(folder), captions(batch)
    chosen = {"ungated": UNGATED} | {text: arm_of(text) for text in plans}
    renders = {name: partial(render, pipe, prompts, arm) for name, arm in chosen.items()}
    return {
        name: statistics.median(seconds) / batch
        for name, seconds in in_turns(renders, rounds).items()
    }


def table(rows: list[dict], seconds: dict[str, float] | None = None) -> str:
    """The rows of a sweep as a Markdown table, with the times of :func:`times` if given."""
    seconds = seconds or {}
    lines = [
        "| plan | GMAC | saved | s | background | count | colours | shapes | sizes | places | all "
        "| all, change to ungated [95%] | PSNR dB | FD ungated | FD drawn |",
        "|---" * 15 + "|",
    ]
    full = next((row["macs"] for row in rows if row["name"] == "ungated"), None)
    for row in rows:
        macs = row.get("macs")
        cells = [
            row["name"],
            f"{macs / 1e9:.2f}" if macs else "",
            f"{1 - macs / full:.0%}" if macs else "",
            f"{seconds[row['name']]:.2f}" if row["name"] in seconds else "",
            *(f"{row[aspect]:.3f}" for aspect in scenes.ASPECTS),
            f"{row['difference']:+.3f} [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]"
            if "interval" in row
            else "",
            *(
                f"{row[key]:.2f}" if key in row else ""
                for key in ("psnr", "fd_ungated", "fd_drawn")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def contact_sheet(folder: Path, plans: list[str], count: int = 12) -> Image.Image:
    """Captions by rows; the drawn picture, the ungated one and each plan's by columns."""
    pipe, prompts = load(folder), captions(count)
    columns = {"drawn": [scenes.draw(prompt, 0) for prompt in prompts]}
    columns["ungated"] = render(pipe, prompts)
    columns |= {text: render(pipe, prompts, arm_of(text)) for text in plans}
    side, left, top = scenes.SIDE + 4, 500, 16
    sheet = Image.new("RGB", (left + side * len(columns), top + side * count), "white")
    pen = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(prompts):
        pen.text((4, top + side * row + side // 2 - 8), prompt, fill="black")
    for column, (name, images) in enumerate(columns.items()):
        pen.text((left + side * column, 2), name, fill="black")
        for row, image in enumerate(images):
            sheet.paste(image, (left + side * column, top + side * row))
    return sheet


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=demo.PATH, help="folder of the pipeline")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--plans", nargs="*", default=list(PLANS), metavar="PLAN")
    parser.add_argument("--output", type=Path, help="write the rows there, as JSON")
    parser.add_argument(
        "--times", action="store_true", help="print seconds a picture, nothing else"
    )
    parser.add_argument("--sheet", type=Path, help="write a contact sheet there, and nothing else")
    chosen = parser.parse_args(arguments)
    if chosen.sheet:
        contact_sheet(chosen.pipeline, chosen.plans).save(chosen.sheet, optimize=True)
        return
    if chosen.times:
        print(json.dumps(times(chosen.pipeline, chosen.plans), indent=1))
        return
    print(table(sweep(chosen.pipeline, chosen.plans, chosen.captions, chosen.output)))


if __name__ == "__main__":
    main()
