"""Every name in an output folder, and every setting that decides a folder's content.

No other module spells a name of the output, and no other decides what an identity holds.

    README.md  run.json  made_of.json  history.jsonl      card, config, ledger, who made it
    prompts/part-00000.parquet                            the frozen prompts
    images/<model>/<arm>/shard-00000.parquet              the pictures, one row each
    features/<extractor>/<model>/<arm>/shard-00000.parquet
    measured/<metric>/<model>/<arm>/shard-00000.parquet   one number a picture
    workers/<name>.json                                   where each worker's time went
    scores/sums/<model>/<arm>/part-00000.npz              what full chunks of shards add up to
    scores/sums/<model>/<arm>/total.npz                   what all of them come down to
    scores/<model>/<arm>.json
    scores/reference/<extractor>.npz                      what the pictures are compared with
    report/index.html  report.json  report.md
    find_plan/frontier.json  recommended.yaml             the result of a search for a plan
    find_plan/searches.json                               the searches and the plans they confirm

While a driver works there, the folder also holds ``claim.json`` and ``claim-<token>.json``.
A reference's file is made in parts: ``<file>.parts/<extractor>/part-00000.parquet``, gone at the
end.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from tgate_batch.config import Arm, Config, ResolvedSampling
from tgate_batch.render.codec import FORMATS
from tgate_batch.storage import stays_inside

# Of the whole folder; 1 had no ledger, 2 no kinds of errors, 3 no kinds of shards, 4 no seals.
FORMAT = 5
READABLE = (4, FORMAT)  # what is rendered into a folder of format 4 makes it one of format 5

CARD = "README.md"
RUN = "run.json"
LEDGER = "made_of.json"
HISTORY = "history.jsonl"
CLAIM = "claim.json"  # only while a driver works here: who it is, and its beats
DAMAGED = "damaged.json"  # only while a damaged file waits for the next run
PROMPTS = "prompts"
IMAGES = "images"
FEATURES = "features"
MEASURED = "measured"
WORKERS = "workers"
SUMS = "scores/sums"
REPORT_JSON = "report/report.json"
REPORT_MARKDOWN = "report/report.md"
REPORT_PAGE = "report/index.html"
FRONTIER = "find_plan/frontier.json"
RECOMMENDED = "find_plan/recommended.yaml"
SEARCHES = "find_plan/searches.json"
IMAGE_FILES = f"{IMAGES}/*/*/*.parquet"  # as a dataset card names them

ROWS = "rows"  # the measurement that holds each row's status and times
IDENTITY_KEY = b"tgate_batch.identity"  # in each Parquet file's footer
ERRORS_KEY = "tgate_batch.errors"  # in a picture file's footer: how many of its rows are errors

Settings = dict[str, str | int | float | bool | None]  # flat, so that a difference has a name


_CLAIM_KEY = re.compile(r"claim-([0-9a-f]{32})\.json")


def claim_key(token: str) -> str:
    """The file that a driver writes once to claim the output; without it the claim is lost."""
    return f"claim-{token}.json"


def token_of(name: str) -> str | None:
    """The token in the name of a ``claim_key``; None for every other name."""
    found = _CLAIM_KEY.fullmatch(name)
    return None if found is None else found[1]


def prompts_part(number: int) -> str:
    return f"{PROMPTS}/part-{number:05d}.parquet"


def images(model: str, arm: str) -> str:
    """The folder of an arm's pictures."""
    return f"{IMAGES}/{model}/{arm}"


def spelled(extractor: str) -> str:
    """An extractor's name as a part of a file's name."""
    return extractor.replace("/", "-").replace(":", "-")


def features(extractor: str, model: str, arm: str) -> str:
    """The folder of an arm's features. An extractor's name may be a dotted import."""
    return f"{FEATURES}/{spelled(extractor)}/{model}/{arm}"


def measured(metric: str, model: str, arm: str) -> str:
    """The folder of one figure a picture."""
    return f"{MEASURED}/{metric}/{model}/{arm}"


def shard_file(folder: str, index: int) -> str:
    """The file of a shard in a folder of pictures, features or measurements."""
    return f"{folder}/shard-{index:05d}.parquet"


def folder_and_shard(name: str) -> tuple[str, int] | None:
    """What ``shard_file`` was given; None for a file of another name."""
    folder, _, file = name.rpartition("/")
    digits = file.removeprefix("shard-").removesuffix(".parquet")
    return (
        (folder, int(digits))
        if digits.isdecimal() and name == shard_file(folder, int(digits))
        else None
    )


def statistics(extractor: str, model: str, arm: str) -> str:
    """``mu`` and ``sigma`` of an arm's features, as pytorch-fid reads them."""
    return f"{features(extractor, model, arm)}.npz"


def worker(name: str) -> str:
    return f"{WORKERS}/{name}.json"


def sums_of(model: str, arm: str) -> str:
    """The folder of an arm's sums."""
    return f"{SUMS}/{model}/{arm}"


def sums(model: str, arm: str, chunk: int) -> str:
    """What a chunk of an arm's shards adds up to."""
    return f"{sums_of(model, arm)}/part-{chunk:05d}.npz"


def conclusion(model: str, arm: str) -> str:
    """What all sums of an arm come down to."""
    return f"{sums_of(model, arm)}/total.npz"


def scores(model: str, arm: str) -> str:
    return f"scores/{model}/{arm}.json"


def reference(extractor: str) -> str:
    """The reference's file, where the run had to make one of pictures."""
    return f"scores/reference/{spelled(extractor)}.npz"


def parts(file: str) -> str:
    """The folder in which a reference's file is made; gone once the file is there."""
    return f"{file}.parts"


def part(file: str, extractor: str, number: int) -> str:
    """One part of a reference's pictures, as features."""
    return f"{parts(file)}/{spelled(extractor)}/part-{number:05d}.parquet"


class FileRole(NamedTuple):
    """What a file is, by its name. ``of``: a metric, an extractor, or a worker."""

    kind: str  # a key of `_PLACES`
    of: str | None = None
    model: str | None = None
    arm: str | None = None
    number: int = 0  # of a shard, a chunk, or a part


_OF, _ARM = r"(?P<of>[^/]+)", r"(?P<model>[^/]+)/(?P<arm>[^/]+)"
_NUMBER = r"(?P<number>\d{5}|[1-9]\d{5,})"
_PLACES = {
    "prompts": rf"{PROMPTS}/part-{_NUMBER}\.parquet",
    "images": rf"{IMAGES}/{_ARM}/shard-{_NUMBER}\.parquet",
    "features": rf"{FEATURES}/{_OF}/{_ARM}/shard-{_NUMBER}\.parquet",
    "measured": rf"{MEASURED}/{_OF}/{_ARM}/shard-{_NUMBER}\.parquet",
    "statistics": rf"{FEATURES}/{_OF}/{_ARM}\.npz",
    "sums": rf"{SUMS}/{_ARM}/part-{_NUMBER}\.npz",
    "conclusion": rf"{SUMS}/{_ARM}/total\.npz",
    "scores": rf"scores/{_ARM}\.json",
    "reference": rf"scores/reference/{_OF}\.npz",
    "part": rf"scores/reference/{_OF}\.npz\.parts/[^/]+/part-{_NUMBER}\.parquet",
    "worker": rf"{WORKERS}/{_OF}\.json",
}


def role_of(name: str) -> FileRole | None:
    """What a file in a folder of the output is; None for a name that nothing here gives."""
    if not stays_inside(name):
        return None
    for kind, pattern in _PLACES.items():
        if found := re.fullmatch(pattern, name):
            said = found.groupdict()
            number = int(said.pop("number", None) or 0)
            return FileRole(kind, **said, number=number)
    return None


def role_of_folder(folder: str) -> FileRole | None:
    """What the files of a folder in the ledger are, as ``role_of`` has it, but for their number."""
    return role_of(shard_file(folder, 0)) or role_of(f"{folder}/total.npz")


def of_pictures(
    config: Config,
    model: str,
    arm: Arm,
    sampling: ResolvedSampling,
    checkpoint: str | None,
    dtype: str,
) -> Settings:
    """Everything that decides an arm's pictures, beside the prompts.

    ``checkpoint`` is the fingerprint of the model's files. Workers, scoring, cost and the length of
    the prompt set are not in it: they change no picture beyond its last bits. The numbers of rows
    that are computed at once decide those bits. Where batches are padded, nothing else in the
    config does, and the numbers are in it; where they are not, neighbours decide too, and they are
    not. A setting that is new in a later version enters only where it is not its default, so that
    older outputs stay as they are.
    """
    settings: Settings = {"model": model, "checkpoint": checkpoint, "dtype": dtype}
    later = {"batch_size", "padding", "scheduler_arguments", "strength"}  # rows', the last one
    for key, value in sampling.model_dump(exclude=later).items():
        settings[f"sampling.{key}"] = value
    if sampling.padding:
        settings["sampling.batch_size"] = sampling.batch_size
        settings["engine.decode_batch_size"] = config.engine.decode_batch_size
    else:
        settings["sampling.padding"] = False
    for key, value in sampling.scheduler_arguments.items():
        flat = value if isinstance(value, str | int | float | None) else json.dumps(value)
        settings[f"sampling.scheduler.{key}"] = flat
    settings |= _of_model(config, model)
    for key in ("compile", "channels_last", "fused_qkv", "attention"):  # these round differently
        settings[f"engine.{key}"] = getattr(config.engine, key)
    settings["images.format"] = config.images.format
    settings["images.mark"] = config.images.mark
    if not FORMATS[config.images.format].lossless:
        settings["images.quality"] = config.images.quality
    return settings | arm.settings


def _of_model(config: Config, name: str) -> Settings:
    """What a model's section adds to the files that its fingerprint stands for."""
    model = next((each for each in config.models if each.name == name), None)
    if model is None:
        return {}
    settings: Settings = {f"loras.{n}.scale": lora.scale for n, lora in enumerate(model.loras)}
    return settings | ({} if model.revision is None else {"revision": model.revision})


def of_rows(pictures: Mapping) -> Settings:
    """What decides the measurement ``rows``: status, times, and whether a picture is broken."""
    return {"pictures": identity(pictures), "version": 3}


def of_features(pictures: Mapping, extractor: str, version: int, weights: str) -> Settings:
    """What decides an arm's features; ``weights`` is the sha256 of the extractor's."""
    return {
        "pictures": identity(pictures),
        "extractor": extractor,
        "version": version,
        "weights": weights,
    }


def of_measurement(
    pictures: Mapping, version: int, weights: str | None, baseline: Mapping | None
) -> Settings:
    """What decides one metric's figures; ``baseline``: of the pictures it compares with."""
    return {
        "pictures": identity(pictures),
        "version": version,
        "weights": weights,
        "baseline": None if baseline is None else identity(baseline),
    }


def of_sums(
    measured: Mapping[str, Mapping], baseline: Mapping[str, Mapping] | None, version: int
) -> Settings:
    """What decides an arm's sums: its measurements, and the baseline's beside which they stand."""
    return {
        "measured": identity(measured),
        "baseline": None if baseline is None else identity(baseline),
        "version": version,
    }


def of_reference(
    listing: str, extractor: str, version: int, weights: str, skip_unreadable: bool = False
) -> Settings:
    """What decides a reference; ``listing`` is a digest of what its source holds."""
    skipping = {"skip_unreadable": True} if skip_unreadable else {}
    return skipping | {
        "listing": listing,
        "extractor": extractor,
        "version": version,
        "weights": weights,
        "format": 1,
    }


def identity(settings: Mapping) -> str:
    """One digest of a folder's settings."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def file_identity(settings: Mapping, shard_digest: str) -> str:
    """What a shard's file carries in its footer: its folder's settings and its prompts."""
    return sha256((identity(settings) + shard_digest).encode()).hexdigest()
