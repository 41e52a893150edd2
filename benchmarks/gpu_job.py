"""The whole job on this device, from prompts to Parquet, by MLPerf's rules for SDXL.

They are 20 steps of Euler, guidance 8, 1024 pixels (mlcommons/inference,
text_to_image/README.md). Weights are random, and as large as the published ones.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from benchmarks import random_weights
from benchmarks.cells import Cell
from benchmarks.timing import ratio
from tgate_batch import config, workflow
from tgate_batch.config import Arm, Config, Images
from tgate_batch.execute import rendering
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.gate import denoiser_of
from tgate_batch.models import catalogue, tiny
from tgate_batch.models.pipeline_runner import PipelineRunner, open_runner
from tgate_batch.output import run as runs
from tgate_batch.prompts.reader import read_prompts
from tgate_batch.records import ShardResult
from tgate_batch.render import codec

_GUIDANCE = 8.0
_SCHEDULER = "EulerDiscreteScheduler"
_ARMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "deepcache-tgate": {"gate_step": 0.4, "deepcache": {"interval": 3}},
}
_SHARDS = 3  # of a batch each, that are timed in a round; one before them warms up


def job_beside_a_bare_loop(cell: Cell, is_tiny: bool, rounds: int) -> dict[str, Any]:
    """By arm: the job's images/s, and over those of a bare loop of the same pipeline, in turns.

    The loop calls the pipeline batch after batch and compresses the pictures in the same thread.
    ``is_tiny``: of the tiny model, for a CPU.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch, "model")
        _save(cell.model, model, is_tiny)
        prompts = Path(scratch, "prompts.txt")
        lines = [f"a picture of number {n}" for n in range((_SHARDS + 1) * cell.batch)]
        prompts.write_text("\n".join(lines), encoding="utf-8")
        settings = {
            arm: _settings(cell, arm, model, prompts, Path(scratch, f"out-{arm}")) for arm in _ARMS
        }
        runner = open_runner(settings["baseline"].models[0], settings["baseline"])
        for arm, chosen in settings.items():
            rates: dict[str, list[float]] = {"job": [], "bare": [], "with_encoding": []}
            for number in range(rounds):
                output = Path(scratch, f"{arm}-{number}")
                once = chosen.model_copy(update={"output": str(output)})
                rates["job"].append(_job_rate(once, runner))
                denoising, encoding_too = _bare_rates(once, runner, chosen.arms[arm])
                rates["bare"].append(denoising)
                rates["with_encoding"].append(encoding_too)
            found[arm] = {
                "images_per_second": median(rates["job"]),
                "job_over_bare": ratio(rates["job"], rates["bare"]),
                "job_over_bare_with_encoding": ratio(rates["job"], rates["with_encoding"]),
            }
    return found


def _settings(cell: Cell, arm: str, model: Path, prompts: Path, output: Path) -> Config:
    return config.parse(
        {
            "models": [{"name": "random", "path": str(model)}],
            "prompts": {"path": str(prompts), "shard_size": cell.batch},
            "sampling": {
                "steps": cell.steps,
                "guidance_scale": _GUIDANCE,
                "scheduler": _SCHEDULER,
                "batch_size": cell.batch,
            },
            "arms": {arm: _ARMS[arm]},
            "workers": {"executor": "local", "gpus_each": int(torch.cuda.is_available())},
            "engine": dict(cell.engine),
            "output": str(output),
        }
    )


def _job_rate(settings: Config, runner: PipelineRunner) -> float:
    """Images/s from the first file to the last, of which the first warms up."""
    run = workflow.prepare(settings)
    runs.begin_run(run)
    finished: list[tuple[float, int]] = []
    opened = partial(_given, runner)
    with LocalExecutor(run.config, run.folder, run.config.models[0], opened) as executor:
        for said in executor.run(rendering.render_pool(run, runs.pending(run))):
            if isinstance(said, ShardResult):
                if said.errors:
                    raise RuntimeError(f"{said.errors} pictures failed: {said.first_error}")
                finished.append((time.perf_counter(), said.images))
    (start, _), (end, _) = finished[0], finished[-1]
    return sum(images for _, images in finished[1:]) / (end - start)


def _given(runner: PipelineRunner, *_: Any) -> PipelineRunner:
    return runner


def _bare_rates(settings: Config, runner: PipelineRunner, arm: Arm) -> tuple[float, float]:
    """The pipeline's images/s, without and with the compression of the pictures."""
    prompts = list(read_prompts(settings.prompts))
    size = runner.sampling.batch_size
    drawing = compressing = 0.0
    pipeline = runner.pipeline
    pipeline.vae.to(denoiser_of(pipeline).dtype)  # as it was loaded: the call itself raises it
    with runner.applying(arm):
        for start in range(0, len(prompts), size):
            texts = [prompt.text for prompt in prompts[start : start + size]]
            seeds = [torch.Generator("cpu").manual_seed(n) for n in range(len(texts))]
            before = time.perf_counter()
            pictures = pipeline(
                texts,
                num_inference_steps=runner.sampling.steps,
                guidance_scale=runner.sampling.guidance_scale,
                height=runner.sampling.height,
                width=runner.sampling.width,
                generator=seeds,
            ).images
            between = time.perf_counter()
            for picture in pictures:
                codec.encode_image(np.asarray(picture), Images())
            if start > 0:  # the first batch warms up
                drawing += between - before
                compressing += time.perf_counter() - between
    images = len(prompts) - size
    return images / drawing, images / (drawing + compressing)


def _save(name: str, folder: Path, is_tiny: bool) -> None:
    """Writes the model as a pipeline's folder: tiny, or of full size in half precision."""
    if is_tiny:
        catalogue.save_tiny(name, folder)
        return
    row, family = catalogue.entry(name), catalogue.family_of(name)
    parts = random_weights.architecture_of(row, family, mid_size=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.float16
    networks = {
        family.denoiser: random_weights.built(parts.denoiser, device, half),
        "vae": random_weights.built(parts.vae, device, half),
        **{key: random_weights.built(part, device, half) for key, part in parts.encoders.items()},
    }
    tokenizers = {
        key.replace("text_encoder", "tokenizer"): tiny.clip_tokenizer() for key in parts.encoders
    }
    pipeline = diffusers.StableDiffusionXLPipeline(
        **networks,
        **tokenizers,
        scheduler=diffusers.EulerDiscreteScheduler(**tiny.SD_BETAS),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
