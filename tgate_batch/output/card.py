"""The dataset card: it makes an output folder a data set that others open, and can cite and keep.

Its text is `card.md`. What that says comes from the folder's own files alone (``run.json``,
``made_of.json``, ``history.jsonl``), none of which holds a credential. Whoever takes out the line
with the mark has a card of his own.
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

_MARK = "<!-- written by tgate_batch; without this line the file is yours, and stays as it is -->"
_OLDER_MARK = "<!-- written by tgate_batch"
_COMMANDS = 10  # that are shown
_SHOWN = ("tgate-batch", "torch", "diffusers")  # versions of a command
_HUB = "https://huggingface.co/"

COLUMNS = {
    "model": "name of the model",
    "arm": "how it was sampled: an arm of the table above",
    "prompt_id": "id of the prompt, unique in the set",
    "image_number": "0, 1, ... where a prompt has several pictures",
    "prompt": "the text that was drawn",
    "seed": "of this picture's noise; the same in every arm",
    "status": "`ok`, or `error`: then there is no picture",
    "error": "why there is none, in a line",
    "image": "the picture: `bytes` as a file holds them, `path` empty",
    "video": "MP4, of a model that draws videos; `image` then is its first frame",
    "width": "pixels",
    "height": "pixels",
    "batch": "name of the batch that the picture was drawn in",
    "batch_size": "pictures in that batch",
    "batch_seconds": "wall time of the whole batch: denoising and decoding",
    "denoise_seconds": "of the batch",
    "decode_seconds": "of the batch",
    "encode_seconds": "compressing this picture",
    "warm_up": "a worker's first batch of an arm: slower, and left out of speeds",
    "worker": "who drew it",
    "memory": "how a batch was cut that did not fit; empty where it did",
    "error_kind": "the error's class",
    "error_traceback": "where it was raised",
    "negative_prompt": "what guidance led away from; empty: nothing of its own",
    "guidance_scale": "the weight of guidance",
    "steps": "denoising steps",
    "place": "the prompt's place in the set, from 0: shards hold rows of one kind",
    "kept": "further columns of the prompt set, as JSON, where they were asked for",
    "strength": "of a row that begins with a picture: how much of it is replaced",
    "digest": "SHA-256 of the row's model, arm, prompt id, image number, image and video",
}


def write(folder: Folder) -> None:
    """Writes the card, unless the folder has a README of somebody else.

    `datasets` keeps a prepared copy of a data set by its configuration, so the card's version
    follows the files: 0.x.y, where x and y are digits of a hash over their names and sizes, and
    over what they are made of. Raises UserError where the ledger cannot be read.
    """
    held = folder.get(layout.CARD)
    if held is not None and not is_ours(held):
        return
    folder.write(layout.CARD, seal.text_with_seal(_card(folder)))


def is_ours(content: bytes) -> bool:
    """Whether a card is one that the next run writes again."""
    return _OLDER_MARK.encode() in content


def _card(folder: Folder) -> str:
    run = json.loads(folder.read(layout.RUN))
    settings = run["config"]
    ledger = Provenance(folder)
    files = folder.sizes(layout.IMAGES)
    return (
        Path(__file__)
        .with_suffix(".md")
        .read_text(encoding="utf-8")
        .format(
            mark=_MARK,
            files=layout.IMAGE_FILES,
            version=_version(files, ledger),
            models=", ".join(model["name"] for model in settings["models"]),
            marked=_marked(settings["images"]),
            counts=_counts(run),
            made="\n".join(_made(settings, ledger, read_descriptions(run.get("models")))),
            source=_plain(", ".join(_paths(settings))),
            arms="\n".join(f"| {name} | {_plan(arm)} |" for name, arm in settings["arms"].items()),
            there="\n".join(_there(folder, run, (name for name, _ in files))),
            commands="\n".join(_commands(folder)),
            licences="\n".join(_licences(settings)),
            columns="\n".join(f"| `{name}` | {COLUMNS[name]} |" for name in SCHEMA.names),
            images=layout.IMAGES,
            prompts=layout.PROMPTS,
            run=layout.RUN,
            ledger=layout.LEDGER,
            history=layout.HISTORY,
        )
    )


def _version(files: list[tuple[str, int]], ledger: Provenance) -> str:
    folders = sorted({name.rpartition("/")[0] for name, _ in files})
    made_of = [ledger[folder] for folder in folders if folder in ledger]
    content = json.dumps([files, made_of], sort_keys=True).encode()
    digest = int.from_bytes(hashlib.sha256(content).digest()[:6], "big")
    return f"0.{digest >> 24}.{digest & 0xFFFFFF}"


def _marked(images: Mapping[str, Any]) -> str:
    if images["mark"]:
        return f"Each says so itself, in its XMP: `DigitalSourceType` is `{MARK}`."
    return "The files do not say so themselves: `images.mark` was off."


def _counts(run: Mapping[str, Any]) -> str:
    config = run["config"]
    each = config["sampling"]["images_per_prompt"]
    rows = run["prompts"] * each * len(config["models"]) * len(config["arms"])
    return (
        f"Prompts: {run['prompts']:,}; pictures of each: {each:,}; arms: {len(config['arms'])}; "
        f"models: {len(config['models'])}. So {rows:,} rows where the run is complete."
    )


def _made(
    settings: Mapping[str, Any], ledger: Provenance, used: Mapping[str, ModelDescription]
) -> Iterator[str]:
    """A line a model: its checkpoint, and how it was sampled."""
    sampling = Sampling.model_validate(settings["sampling"])
    for model in settings["models"]:
        name = model["name"]
        held = used.get(name)
        how = catalogue.resolve(name, sampling) if held is None else held.sampling
        scheduler = _scheduler(how.scheduler) if held is None else _plain(held.scheduler)
        entered = (layout.images(name, arm) for arm in settings["arms"])
        made_of = next((ledger[folder] for folder in entered if folder in ledger), {})
        negative = how.negative_prompt
        yield (
            f"- **{name}**: `{_plain(_checkpoint(model))}`"
            + (f" (sha256 `{made_of['checkpoint']}`)" if made_of.get("checkpoint") else "")
            + (f", in {made_of['dtype']}" if made_of.get("dtype") else "")
            + f"; {how.steps} steps of {scheduler}, guidance "
            f"{how.guidance_scale:g}, {how.width} x {how.height} pixels, seed {how.seed}"
            + (f", negative prompt `{_plain(negative)}`" if negative else "")
        )


def _scheduler(name: str) -> str:
    return f"{name} scheduler" if name == OWN_SCHEDULER else _plain(name)


def _checkpoint(model: Mapping[str, Any]) -> str:
    """What was loaded, as a person names it."""
    revision, loras = model.get("revision"), model.get("loras") or []
    said = _place(model) + (f" at {revision}" if revision else "")
    said += "".join(f", {part} {model[part]}" for part in ("unet", "vae") if model.get(part))
    return said + "".join(f", LoRA {lora['path']} at {lora['scale']:g}" for lora in loras)


def _place(model: Mapping[str, Any]) -> str:
    if model["path"] is not None:
        return model["path"]
    entry = catalogue.entry(model["name"])
    if entry.checkpoint == str(demo.PATH):
        return "the model that comes with tgate_batch"
    return entry.checkpoint if entry.unet is None else f"{entry.checkpoint} with {entry.unet}"


def _plan(arm: Mapping[str, Any]) -> str:
    given = Arm.model_validate(arm).settings
    said = ", ".join(f"`{key}` {value}" for key, value in given.items() if value is not None)
    return "none: the whole of every step" if Arm.model_validate(arm).is_baseline else said


def _there(folder: Folder, run: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    """A line an arm: its finished files and failed images. Arms of earlier configs come last."""
    counted: Counter[tuple[str, str]] = Counter()
    for name in names:
        role = layout.role_of(name)
        if role is not None:
            counted[str(role.model), str(role.arm)] += 1
    for model in run["config"]["models"]:
        for arm in run["config"]["arms"]:
            done = counted.pop((model["name"], arm), 0)
            failed = _failed(folder, model["name"], arm)
            yield f"| {model['name']} {arm} | {done:,} | {run['shards']:,} | {failed} |"
    for (name, arm), done in sorted(counted.items()):
        yield f"| {name} {arm}, which is in the config no more | {done:,} | | |"


def _failed(folder: Folder, model: str, arm: str) -> str:
    """How many images failed, by the arm's scores; nothing where it has none yet."""
    try:
        scores = json.loads(folder.get(layout.scores(model, arm)) or b"{}")
    except ValueError:  # damaged, and written again by scoring
        scores = {}
    errors = scores.get("errors") if isinstance(scores, dict) else None
    return f"{errors:,}" if isinstance(errors, int) else ""


def _commands(folder: Folder) -> Iterator[str]:
    """The commands that worked here, each once; indented, which Markdown shows as it is."""
    lines: dict[str, None] = {}
    for entry in history.read(folder):
        versions = entry.get("versions") or {}
        by = ", ".join(f"{key} {versions[key]}" for key in _SHOWN if key in versions)
        command = shlex.join(_words(entry.get("command") or ["unknown"]))
        lines[f"    {one_line(command, 1000)}  # {one_line(by)}"] = None
    yield from list(lines)[-_COMMANDS:] or ["    unknown"]


def _words(command: list[str]) -> list[str]:
    """A command as a person types it, without the place where the program is installed."""
    program = Path(command[0]).name
    if program in ("tgate-batch", "__main__.py"):
        return ["tgate-batch", *command[1:]]
    return ["python", *command] if program.endswith(".py") else command


def _licences(settings: Mapping[str, Any]) -> Iterator[str]:
    """What is known of who allows what, and what is not."""
    for model in settings["models"]:
        entry = catalogue.CATALOGUE.get(model["name"])
        if entry is None or model["path"] not in (None, entry.checkpoint):
            said = f"not known to tgate_batch: the weights are those of `{_plain(model['path'])}`"
        elif entry.license is None:
            said = f"not known to tgate_batch: see the card of `{entry.checkpoint}`"
        else:
            said = f"{entry.license}, says the card of {_card_of(entry)}"
        yield f"- Weights of {model['name']}: {said}."
    if all(map(_is_demos, _paths(settings))):
        yield "- Prompts: apache-2.0; they come with tgate_batch."
    else:
        yield "- Prompts: not known to tgate_batch; see where they come from."
    yield (
        "- Pictures: what the weights' and the prompts' licences allow; tgate_batch adds no "
        "condition."
    )


def _card_of(entry: Any) -> str:
    if entry.checkpoint == str(demo.PATH):
        return "the model that comes with tgate_batch"
    second = "" if entry.unet is None else f" and of [{entry.unet}]({_HUB}{entry.unet})"
    return f"[{entry.checkpoint}]({_HUB}{entry.checkpoint}){second}"


def _paths(settings: Mapping[str, Any]) -> list[str]:
    path = settings["prompts"]["path"]
    return [path] if isinstance(path, str) else path


def _is_demos(path: str) -> bool:
    """Whether these are the prompts of the embedded model."""
    if path == "demo":
        return True
    return "://" not in path and Path(path).resolve() == demo.PROMPTS.resolve()


def _plain(text: object) -> str:
    """Text of a user on one line, which ends no code span, table cell or comment."""
    return one_line(text).replace("`", "'").replace("|", "/").replace("<", "(").replace(">", ")")
