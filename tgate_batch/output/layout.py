"""All file names of an output folder, and all settings that decide a folder's content.

No other module spells a name of the output or decides what is part of an identity.

    README.md  run.json  made_of.json  history.jsonl      card, config, provenance, invocations
    prompts/part-00000.parquet                            the stored prompts
    images/<model>/<arm>/shard-00000.parquet              the images, one row each
    features/<extractor>/<model>/<arm>/shard-00000.parquet
    measured/<metric>/<model>/<arm>/shard-00000.parquet   one value per image
    workers/<name>.json                                   time spent per stage
    scores/sums/<model>/<arm>/part-00000.npz              partial sums of a full chunk of shards
    scores/sums/<model>/<arm>/total.npz                   the conclusion from all partial sums
    scores/<model>/<arm>.json
    scores/reference/<extractor>.npz                      the reference's statistics
    report/index.html  report.json  report.md
    find_plan/frontier.json  recommended.yaml             the result of a search for a plan
    find_plan/searches.json                               the searches and the plans they confirm

While a driver works there, the folder also has ``claim.json`` and ``claim-<token>.json``. A
reference file is built from ``<file>.parts/<extractor>/part-00000.parquet``, which are then
removed.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from tgate_batch.config import Arm, Config, ResolvedSampling
from tgate_batch.render.codec import FORMATS
from tgate_batch.storage import stays_inside

# Of the whole folder. 1 had no ledger, 2 no error kinds, 3 no batch keys, 4 no seals.
FORMAT = 5
READABLE = (4, FORMAT)  # rendering into a folder of format 4 upgrades it to 5

CARD = "README.md"
RUN = "run.json"
LEDGER = "made_of.json"
HISTORY = "history.jsonl"
CLAIM = "claim.json"  # only while a driver works here: its process and its heartbeats
DAMAGED = "damaged.json"  # only until the next run replaces the damaged files
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
IMAGE_FILES = f"{IMAGES}/*/*/*.parquet"  # the pattern in the dataset card

ROWS = "rows"  # the measurement with each row's status and times
IDENTITY_KEY = b"tgate_batch.identity"  # in each Parquet file's footer
ERRORS_KEY = "tgate_batch.errors"  # in an image file's footer: its number of error rows

Settings = dict[str, str | int | float | bool | None]  # flat, so that a difference has a name


_CLAIM_KEY = re.compile(r"claim-([0-9a-f]{32})\.json")


def claim_key(token: str) -> str:
    """Returns the file that a driver writes to lock the output; it owns the folder with it only."""
    return f"claim-{token}.json"


def token_of(name: str) -> str | None:
    """Returns the token in the name of a ``claim_key``; None for other names."""
    match = _CLAIM_KEY.fullmatch(name)
    return None if match is None else match[1]


def prompts_part(number: int) -> str:
    return f"{PROMPTS}/part-{number:05d}.parquet"


def images(model: str, arm: str) -> str:
    """Returns the folder of an arm's images."""
    return f"{IMAGES}/{model}/{arm}"


def spelled(extractor: str) -> str:
    """Returns an extractor's name as part of a file name."""
    return extractor.replace("/", "-").replace(":", "-")


def features(extractor: str, model: str, arm: str) -> str:
    """Returns the folder of an arm's features; an extractor's name may be a dotted import."""
    return f"{FEATURES}/{spelled(extractor)}/{model}/{arm}"


def measured(metric: str, model: str, arm: str) -> str:
    """Returns the folder of a metric's values, one per image."""
    return f"{MEASURED}/{metric}/{model}/{arm}"


def shard_file(folder: str, index: int) -> str:
    """Returns the file of a shard in a folder of images, features or measurements."""
    return f"{folder}/shard-{index:05d}.parquet"


def folder_and_shard(name: str) -> tuple[str, int] | None:
    """Returns the arguments of ``shard_file`` from its result; None for other names."""
    folder, _, file = name.rpartition("/")
    digits = file.removeprefix("shard-").removesuffix(".parquet")
    if digits.isdecimal() and name == shard_file(folder, int(digits)):
        return folder, int(digits)
    return None


def statistics(extractor: str, model: str, arm: str) -> str:
    """Returns the file of ``mu`` and ``sigma`` of an arm's features, in pytorch-fid's format."""
    return f"{features(extractor, model, arm)}.npz"


def worker(name: str) -> str:
    return f"{WORKERS}/{name}.json"


def sums_of(model: str, arm: str) -> str:
    """Returns the folder of an arm's partial sums."""
    return f"{SUMS}/{model}/{arm}"


def sums(model: str, arm: str, chunk: int) -> str:
    """Returns the file of the partial sums of a chunk of an arm's shards."""
    return f"{sums_of(model, arm)}/part-{chunk:05d}.npz"


def conclusion(model: str, arm: str) -> str:
    """Returns the file of the conclusion from all partial sums of an arm."""
    return f"{sums_of(model, arm)}/total.npz"


def scores(model: str, arm: str) -> str:
    return f"scores/{model}/{arm}.json"


def reference(extractor: str) -> str:
    """Returns the file of a reference that the run computed from images."""
    return f"scores/reference/{spelled(extractor)}.npz"


def parts(file: str) -> str:
    """Returns the folder of the parts of a reference file, removed when the file is complete."""
    return f"{file}.parts"


def part(file: str, extractor: str, number: int) -> str:
    """Returns the file of the features of one part of a reference's images."""
    return f"{parts(file)}/{spelled(extractor)}/part-{number:05d}.parquet"


class FileRole(NamedTuple):
    """The role of a file, by its name. ``of``: a metric, an extractor, or a worker."""

    kind: str  # a key of `_PATTERNS`
    of: str | None = None
    model: str | None = None
    arm: str | None = None
    number: int = 0  # of a shard, a chunk, or a part


_OF, _ARM = r"(?P<of>[^/]+)", r"(?P<model>[^/]+)/(?P<arm>[^/]+)"
_NUMBER = r"(?P<number>\d{5}|[1-9]\d{5,})"
_PATTERNS = {
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
    """Returns the role of a file in a folder of the output; None for an unknown name."""
    if not stays_inside(name):
        return None
    for kind, pattern in _PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            number = int(groups.pop("number", None) or 0)
            return FileRole(kind, **groups, number=number)
    return None


def role_of_folder(folder: str) -> FileRole | None:
    """Returns the role of the files of a folder in the ledger; None for an unknown folder."""
    return role_of(shard_file(folder, 0)) or role_of(f"{folder}/total.npz")


def of_pictures(
    config: Config,
    model: str,
    arm: Arm,
    sampling: ResolvedSampling,
    checkpoint: str | None,
    dtype: str,
) -> Settings:
    """Returns everything that decides an arm's images, except the prompts.

    ``checkpoint`` is the fingerprint of the model's files. Workers, scoring, cost and the length of
    the prompt set are not included: they change an image in its last bits at most. With padding,
    only the batch sizes decide these bits, so they are included; without padding, the other rows
    of a batch decide them too, so they are not. A setting of a later version is included only if it
    is not its default, so that the identity of older outputs does not change.
    """
    settings: Settings = {"model": model, "checkpoint": checkpoint, "dtype": dtype}
    later = {"batch_size", "padding", "scheduler_arguments", "strength"}  # strength is the rows'
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
    section = next((each for each in config.models if each.name == model), None)
    if section is not None:
        settings |= {f"loras.{n}.scale": lora.scale for n, lora in enumerate(section.loras)}
        settings |= {} if section.revision is None else {"revision": section.revision}
    for key in ("compile", "channels_last", "fused_qkv", "attention"):  # these round differently
        settings[f"engine.{key}"] = getattr(config.engine, key)
    settings["images.format"] = config.images.format
    settings["images.mark"] = config.images.mark
    if not FORMATS[config.images.format].lossless:
        settings["images.quality"] = config.images.quality
    return settings | arm.settings


def of_rows(pictures: Mapping) -> Settings:
    """Returns the inputs of the measurement ``rows``: status, times, and broken images."""
    return {"pictures": identity(pictures), "version": 3}


def of_features(pictures: Mapping, extractor: str, version: int, weights: str) -> Settings:
    """Returns the inputs of an arm's features; ``weights`` is the sha256 of the extractor's."""
    return {
        "pictures": identity(pictures),
        "extractor": extractor,
        "version": version,
        "weights": weights,
    }


def of_measurement(
    pictures: Mapping, version: int, weights: str | None, baseline: Mapping | None
) -> Settings:
    """Returns the inputs of a metric's values; ``baseline``: settings of the compared images."""
    return {
        "pictures": identity(pictures),
        "version": version,
        "weights": weights,
        "baseline": None if baseline is None else identity(baseline),
    }


def of_sums(
    measured: Mapping[str, Mapping], baseline: Mapping[str, Mapping] | None, version: int
) -> Settings:
    """Returns the inputs of an arm's partial sums: its measurements and the baseline's."""
    return {
        "measured": identity(measured),
        "baseline": None if baseline is None else identity(baseline),
        "version": version,
    }


def of_reference(
    listing: str, extractor: str, version: int, weights: str, skip_unreadable: bool = False
) -> Settings:
    """Returns the inputs of a reference; ``listing`` is a digest of its source's files."""
    skipping = {"skip_unreadable": True} if skip_unreadable else {}
    return skipping | {
        "listing": listing,
        "extractor": extractor,
        "version": version,
        "weights": weights,
        "format": 1,
    }


def identity(settings: Mapping) -> str:
    """Returns the digest of a folder's settings."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def file_identity(settings: Mapping, shard_digest: str) -> str:
    """Returns the digest in a file's footer: of its folder's settings and its shard's prompts."""
    return sha256((identity(settings) + shard_digest).encode()).hexdigest()
