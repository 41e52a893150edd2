"""Renders one image or video with T-GATE, with the options of the reference's main.py.

Examples:
  tgate-batch image --model sdxl --prompt "an astronaut riding a horse" --saved_path out/one
"""

import argparse
import urllib.request
from pathlib import Path
from typing import Any

from tgate_batch.config import Images, Model, Sampling
from tgate_batch.errors import UserError, one_line
from tgate_batch.gate.plan import DeepCache, GatePlan
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.family import Entry
from tgate_batch.models.resolve import resolve_sampling

ALIASES = {  # the reference's names -> names of the catalogue
    "pixart": "pixart_alpha",
    "lcm_pixart": "lcm_pixart_alpha",
    "sd_xl": "sdxl",
    "sd_1.5": "sd15",
    "sd_2.1": "sd21",
}


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", help="the text to render")
    add("--image", metavar="FILE", help="the first image of a video (svd): a file or a URL")
    add("--saved_path", required=True, metavar="DIR", help="folder for test.png or test.mp4")
    add("--model", default="pixart", help=f"{', '.join([*catalogue.CATALOGUE, *ALIASES])}")
    add(
        "--gate_step",
        type=_step,
        default=10,
        help="first step without guidance and cross-attention; 0.4: that share of the steps",
    )
    add(
        "--sp_interval",
        type=int,
        default=5,
        help="compute self-attention every so many steps before the gate",
    )
    add(
        "--fi_interval",
        type=int,
        default=1,
        help="compute self-attention every so many steps after the gate",
    )
    add("--warm_up", type=int, default=2, help="number of first steps that compute everything")
    add("--inference_step", type=int, default=25, help="denoising steps")
    add("--deepcache", action="store_true", help="use DeepCache too (U-Nets only)")
    add("--path", metavar="FOLDER", help="a checkpoint folder to use instead of the documented one")
    add("--height", type=int, help="pixels; default: the model's own")
    add("--width", type=int, help="pixels; default: the model's own")
    add("--seed", type=int, default=0, help="seed of the noise")


def _step(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def run(options: argparse.Namespace) -> None:
    row = catalogue.entry(ALIASES.get(options.model, options.model))
    try:
        # The reference gates only cross-attention with DeepCache and in distilled models.
        alone = options.deepcache or row.name.startswith("lcm_")
        sp_interval, warm_up = (1, 0) if alone else (options.sp_interval, options.warm_up)
        plan = GatePlan(options.gate_step, sp_interval, options.fi_interval, warm_up)
        plan.check(options.inference_step)
        call = _call(row, options)
        folder = _writable(options.saved_path)
        output = _render(row, options, plan, call)
    except ValueError as error:
        raise UserError(str(error)) from None
    family = catalogue.family_of(row.name)
    if family.draws == "video":
        file = folder / "test.mp4"
        file.write_bytes(_encode_video(output, family.frames_per_second))
    else:
        file = folder / "test.png"
        file.write_bytes(_encode_png(output))
    print(file)


def _call(row: Entry, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the pipeline that differ from its defaults; raises UserError."""
    size = {"height": options.height, "width": options.width}
    call = {name: pixels for name, pixels in size.items() if pixels is not None}
    call["output_type"] = "pil"
    if catalogue.family_of(row.name).condition is not None:
        if options.image is None:
            raise UserError(f"--model {row.name} needs an image. Fix: give one with --image")
        return call | {
            "image": _open_image(options.image),
            "num_frames": 25,
            "decode_chunk_size": 8,
        }
    if options.prompt is None:
        raise UserError(f"--model {row.name} needs a prompt. Fix: give one with --prompt")
    if options.image is not None:
        raise UserError(
            f"--model {row.name} takes no --image. Fix: remove it, or put the image into a row of "
            "a prompt set (docs/prompts.md)"
        )
    if row.guidance_scale <= 1:
        call["guidance_scale"] = row.guidance_scale
    return call | {"prompt": options.prompt}


def _open_image(path: str) -> Any:
    """Opens the image of a file or a URL, upright, in RGB; raises UserError."""
    from tgate_batch.storage.images import open_upright

    try:
        if path.startswith(("http://", "https://")):
            with urllib.request.urlopen(path, timeout=60) as answer:
                content = answer.read()
        else:
            content = Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"--image {path} cannot be read: {one_line(error)}") from None
    try:
        return open_upright(content)
    except UserError as error:
        raise UserError(f"--image {path} {error}") from None


def _writable(path: str) -> Path:
    try:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    except OSError as error:
        raise UserError(f"--saved_path {path} cannot be written: {error.strerror}") from None
    return folder


def _render(row: Entry, options: argparse.Namespace, plan: GatePlan, call: dict[str, Any]) -> Any:
    import torch

    from tgate_batch.gate.loaders import with_tgate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Model(name=row.name, path=options.path)
    pipe = load_pipeline(model, resolve_sampling(model, Sampling()), device)
    pipe.set_progress_bar_config(disable=False)
    with_tgate(pipe, plan, DeepCache(3, 0) if options.deepcache else None)
    output = pipe.tgate(
        num_inference_steps=options.inference_step,
        generator=torch.Generator("cpu").manual_seed(options.seed),
        **call,
    )
    return output[0][0]


def _encode_png(image: Any) -> bytes:
    import numpy as np

    from tgate_batch.render import codec

    return codec.encode_image(np.asarray(image), Images(format="png"))


def _encode_video(frames: list, frames_per_second: int) -> bytes:
    import numpy as np

    from tgate_batch.render import codec

    pixels = np.stack([np.asarray(frame) for frame in frames])
    return codec.encode_video(pixels, frames_per_second=frames_per_second)
