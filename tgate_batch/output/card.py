"""Writes the dataset card (README.md), so that others can open, cite and publish an output folder.

Its template is `card.md`. The values come only from files of the folder (``run.json``,
``made_of.json``, ``history.jsonl``), which contain no credentials. A card without the marker line
is never overwritten.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tgate_batch import demo
from tgate_batch.config import OWN_SCHEDULER, Arm, Sampling
from tgate_batch.errors import one_line
from tgate_batch.models import catalogue
from tgate_batch.models.description import ModelDescription, read_descriptions
from tgate_batch.output import history, layout, seal
from tgate_batch.output.provenance import Provenance
from tgate_batch.records import SCHEMA
from tgate_batch.render.codec import MARK
from tgate_batch.storage import Folder

_MARK = "<!-- written by tgate_batch; delete this line to keep your edits -->"
_OLDER_MARK = "<!-- written by tgate_batch"
_MOST_COMMANDS = 10
_VERSIONS = ("tgate-batch", "torch", "diffusers")  # shown with a command

COLUMNS = {
    "model": "name of the model",
    "arm": "the sampling condition: an arm of the table above",
    "prompt_id": "id of the prompt, unique in the set",
    "image_number": "0, 1, ... if a prompt has several images",
    "prompt": "the text that was rendered",
    "seed": "seed of this image's noise; the same in every arm",
    "status": "`ok`, or `error`: then there is no image",
    "error": "the error's message",
    "image": "the image: `bytes` as in a file, `path` empty",
    "video": "MP4, for a video model; `image` is then its first frame",
    "width": "pixels",
    "height": "pixels",
    "batch": "name of the image's batch",
    "batch_size": "images in that batch",
    "batch_seconds": "wall time of the whole batch: denoising and decoding",
    "denoise_seconds": "of the batch",
    "decode_seconds": "of the batch",
    "encode_seconds": "time to compress this image",
    "warm_up": "a worker's first batch of an arm: slower, and excluded from speeds",
    "worker": "name of the worker that rendered it",
    "memory": "how a batch was split that did not fit in memory; else empty",
    "error_kind": "the error's class",
    "error_traceback": "the error's traceback",
    "negative_prompt": "the text that guidance steers away from; may be empty",
    "guidance_scale": "the weight of guidance",
    "steps": "denoising steps",
    "place": "the prompt's position in the set, from 0: rows of a shard have equal sizes and steps",
    "kept": "further columns of the prompt set, as JSON, if requested",
    "strength": "for image-to-image: how much of the input image is replaced",
    "digest": "SHA-256 of the row's model, arm, prompt id, image number, image and video",
}


def write(folder: Folder) -> None:
    """Writes the card, unless the folder has another README.

    `datasets` caches a data set by its configuration, so the card's version depends on the files:
    0.x.y, where x and y are digits of a hash of their names, sizes and settings. Raises UserError
    if the ledger cannot be read.
    """
    current = folder.get(layout.CARD)
    if current is None or is_ours(current):
        folder.write(layout.CARD, seal.text_with_seal(_card(folder)))


def is_ours(content: bytes) -> bool:
    """Returns True for a card that the next run may overwrite."""
    return _OLDER_MARK.encode() in content


def _card(folder: Folder) -> str:
    run = json.loads(folder.read(layout.RUN))
    settings = run["config"]
    ledger = Provenance(folder)
    files = folder.sizes(layout.IMAGES)
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    return template.format(
        mark=_MARK,
        files=layout.IMAGE_FILES,
        version=_version(files, ledger),
        models=", ".join(model["name"] for model in settings["models"]),
        marked=_marked(settings["images"]),
        counts=_counts(run),
        made="\n".join(_models(settings, ledger, read_descriptions(run.get("models")))),
        source=_plain(", ".join(_paths(settings))),
        arms="\n".join(f"| {name} | {_plan(arm)} |" for name, arm in settings["arms"].items()),
        progress="\n".join(_progress(folder, run, (name for name, _ in files))),
        commands="\n".join(_commands(folder)),
        licences="\n".join(_licences(settings)),
        columns="\n".join(f"| `{name}` | {COLUMNS[name]} |" for name in SCHEMA.names),
        images=layout.IMAGES,
        prompts=layout.PROMPTS,
        run=layout.RUN,
        ledger=layout.LEDGER,
        history=layout.HISTORY,
    )


def _version(files: list[tuple[str, int]], ledger: Provenance) -> str:
    folders = sorted({name.rpartition("/")[0] for name, _ in files})
    entries = [ledger[folder] for folder in folders if folder in ledger]
    content = json.dumps([files, entries], sort_keys=True).encode()
    digest = int.from_bytes(hashlib.sha256(content).digest()[:6], "big")
    return f"0.{digest >> 24}.{digest & 0xFFFFFF}"


def _marked(images: Mapping[str, Any]) -> str:
    if images["mark"]:
        return f"Each file is marked in its XMP: `DigitalSourceType` is `{MARK}`."
    return "The files are not marked: `images.mark` was off."


def _counts(run: Mapping[str, Any]) -> str:
    config = run["config"]
    each = config["sampling"]["images_per_prompt"]
    rows = run["prompts"] * each * len(config["models"]) * len(config["arms"])
    return (
        f"Prompts: {run['prompts']:,}; images per prompt: {each:,}; arms: {len(config['arms'])}; "
        f"models: {len(config['models'])}. A complete run has {rows:,} rows."
    )


def _models(
    settings: Mapping[str, Any], ledger: Provenance, described: Mapping[str, ModelDescription]
) -> Iterator[str]:
    """Yields a line for each model: its checkpoint and its sampling settings."""
    sampling = Sampling.model_validate(settings["sampling"])
    for model in settings["models"]:
        name = model["name"]
        one = described.get(name)
        how = catalogue.resolve(name, sampling) if one is None else one.sampling
        scheduler = _plain(how.scheduler if one is None else one.scheduler)
        if one is None and how.scheduler == OWN_SCHEDULER:
            scheduler += " scheduler"
        folders = (layout.images(name, arm) for arm in settings["arms"])
        entry = next((ledger[folder] for folder in folders if folder in ledger), {})
        negative = how.negative_prompt
        yield (
            f"- **{name}**: `{_plain(_checkpoint(model))}`"
            + (f" (sha256 `{entry['checkpoint']}`)" if entry.get("checkpoint") else "")
            + (f", in {entry['dtype']}" if entry.get("dtype") else "")
            + f"; {how.steps} steps of {scheduler}, guidance "
            f"{how.guidance_scale:g}, {how.width} x {how.height} pixels, seed {how.seed}"
            + (f", negative prompt `{_plain(negative)}`" if negative else "")
        )


def _checkpoint(model: Mapping[str, Any]) -> str:
    """Returns the weights that were loaded, as a user names them."""
    revision, loras = model.get("revision"), model.get("loras") or []
    entry = None if model["path"] is not None else catalogue.entry(model["name"])
    if entry is None:
        text = model["path"]
    elif entry.checkpoint == str(demo.PATH):
        text = _EMBEDDED
    else:
        text = entry.checkpoint if entry.unet is None else f"{entry.checkpoint} with {entry.unet}"
    text += f" at {revision}" if revision else ""
    text += "".join(f", {part} {model[part]}" for part in ("unet", "vae") if model.get(part))
    return text + "".join(f", LoRA {lora['path']} at {lora['scale']:g}" for lora in loras)


_EMBEDDED = "the embedded model of tgate_batch"


def _plan(section: Mapping[str, Any]) -> str:
    arm = Arm.model_validate(section)
    if arm.is_baseline:
        return "none: every step is computed in full"
    return ", ".join(f"`{key}` {value}" for key, value in arm.settings.items() if value is not None)


def _progress(folder: Folder, run: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """Yields a line for each arm: finished files and failed images; arms of older configs last."""
    roles = filter(None, map(layout.role_of, names))
    files = Counter((str(role.model), str(role.arm)) for role in roles)
    for model in run["config"]["models"]:
        for arm in run["config"]["arms"]:
            done = files.pop((model["name"], arm), 0)
            failed = _failed(folder, model["name"], arm)
            yield f"| {model['name']} {arm} | {done:,} | {run['shards']:,} | {failed} |"
    for (name, arm), done in sorted(files.items()):
        yield f"| {name} {arm}, no longer in the config | {done:,} | | |"


def _failed(folder: Folder, model: str, arm: str) -> str:
    """Returns the number of failed images from the arm's scores; no text if it has none yet."""
    try:
        scores = json.loads(folder.get(layout.scores(model, arm)) or b"{}")
    except ValueError:  # damaged; scoring writes it again
        scores = {}
    errors = scores.get("errors") if isinstance(scores, dict) else None
    return f"{errors:,}" if isinstance(errors, int) else ""


def _commands(folder: Folder) -> Iterator[str]:
    """Yields the last commands that worked here, each once, as an indented block of Markdown."""
    lines: dict[str, None] = {}
    for entry in history.read(folder):
        versions = entry.get("versions") or {}
        by = ", ".join(f"{key} {versions[key]}" for key in _VERSIONS if key in versions)
        command = shlex.join(_words(entry.get("command") or ["unknown"]))
        lines[f"    {one_line(command, 1000)}  # {one_line(by)}"] = None
    yield from list(lines)[-_MOST_COMMANDS:] or ["    unknown"]


def _words(command: list[str]) -> list[str]:
    """Returns a command as a user types it, without the path of the installed program."""
    program = Path(command[0]).name
    if program in ("tgate-batch", "__main__.py"):
        return ["tgate-batch", *command[1:]]
    return ["python", *command] if program.endswith(".py") else command


def _licences(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line about the licence of each model, of the prompts, and of the images."""
    for model in settings["models"]:
        entry = catalogue.CATALOGUE.get(model["name"])
        if entry is None or model["path"] not in (None, entry.checkpoint):
            text = f"not known to tgate_batch: the weights are those of `{_plain(model['path'])}`"
        elif entry.license is None:
            text = f"not known to tgate_batch: see the card of `{entry.checkpoint}`"
        elif entry.checkpoint == str(demo.PATH):
            text = f"{entry.license}, according to the card of {_EMBEDDED}"
        else:
            hubs = (entry.checkpoint,) if entry.unet is None else (entry.checkpoint, entry.unet)
            cards = " and of ".join(f"[{hub}](https://huggingface.co/{hub})" for hub in hubs)
            text = f"{entry.license}, according to the card of {cards}"
        yield f"- Weights of {model['name']}: {text}."
    if all(map(_is_demo, _paths(settings))):
        yield "- Prompts: apache-2.0; they are part of tgate_batch."
    else:
        yield "- Prompts: not known to tgate_batch; see their source."
    yield "- Images: the licences of weights and prompts apply; tgate_batch adds no condition."


def _paths(settings: Mapping[str, Any]) -> list[str]:
    path = settings["prompts"]["path"]
    return [path] if isinstance(path, str) else path


def _is_demo(path: str) -> bool:
    """Returns True for the prompts of the embedded model."""
    if path == "demo":
        return True
    return "://" not in path and Path(path).resolve() == demo.PROMPTS.resolve()


def _plain(text: object) -> str:
    """Returns a user's text on one line, without marks that end code, table cells or comments."""
    return one_line(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")
