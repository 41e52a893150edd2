"""The catalogue: every model by name, put together from the families' files."""

import difflib
from importlib import import_module
from pathlib import Path
from typing import Any

from tgate_batch.config import OWN_SCHEDULER, ResolvedSampling, Sampling, scheduler_of
from tgate_batch.errors import UserError
from tgate_batch.models.family import Entry, Family

MODULES = (
    "tgate_batch.models.sd",
    "tgate_batch.models.sdxl",
    "tgate_batch.models.kolors",
    "tgate_batch.models.pixart",
    "tgate_batch.models.sana",
    "tgate_batch.models.svd",
    "tgate_batch.models.wan",
    "tgate_batch.models.generic.family",
)
CATALOGUE: dict[str, Entry] = {}
_FAMILIES: dict[str, Family] = {}


def register(module: str) -> None:
    """Adds the rows of a module's ``FAMILY`` to the catalogue; a second time changes nothing.

    ``module`` is a dotted name that can be imported. Raises UserError, and adds nothing, where it
    cannot, where it has no ``FAMILY``, and where a row's name is taken.
    """
    try:
        family = getattr(import_module(module), "FAMILY", None)
    except ImportError as error:
        raise UserError(
            f"models: {module!r} cannot be imported: {error}; give the dotted name of a module on "
            "Python's path"
        ) from None
    if not isinstance(family, Family):
        raise UserError(
            f"models: {module!r} has no FAMILY; give it one, as tgate_batch/models/sd.py does"
        )
    rows = dict(CATALOGUE)
    for row in family.entries:
        if rows.setdefault(row.name, row) is not row:
            raise UserError(
                f"models: {module!r}: the name {row.name!r} is taken; give its row another name"
            )
    CATALOGUE.update(rows)
    _FAMILIES.update({row.name: family for row in family.entries})


def entry(name: str) -> Entry:
    """The catalogue's row; raises UserError with the nearest known name."""
    try:
        return CATALOGUE[name]
    except KeyError:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(CATALOGUE)}"
        raise UserError(
            f"models: unknown model {name!r}; {hint}; a model of your own needs its path too"
        ) from None


def family_of(name: str) -> Family:
    """The family of a model of the catalogue; raises UserError as ``entry`` does."""
    return _FAMILIES[entry(name).name]


def resolve(name: str, sampling: Sampling) -> ResolvedSampling:
    """The sampling with the model's documented setting wherever the config leaves it open."""
    return documented_sampling(entry(name), sampling)


def documented_sampling(row: Entry, sampling: Sampling) -> ResolvedSampling:
    """The sampling with the row's setting wherever the config leaves it open."""
    documented: dict[str, Any] = {
        "steps": row.steps,
        "guidance_scale": row.guidance_scale,
        "height": row.height,
        "width": row.width,
        "scheduler": row.scheduler or OWN_SCHEDULER,
    }
    given = sampling.model_dump(exclude_none=True)
    if sampling.scheduler is not None:
        given |= scheduler_of(sampling.scheduler)
    return ResolvedSampling(**documented | given)


def tiny(name: str) -> Any:
    """The tiny model of a row, float32 on the CPU; its weights are drawn from a fixed seed.

    Raises UserError for a row that has none.
    """
    import torch

    make = entry(name).tiny
    if make is None:
        having = ", ".join(row.name for row in CATALOGUE.values() if row.tiny is not None)
        raise UserError(f"models: there is no tiny model of {name!r}; choose one of: {having}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = make()
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_tiny(name: str, folder: str | Path) -> Path:
    """Writes the tiny model of a row into ``folder`` as a diffusers pipeline; see ``tiny``."""
    folder = Path(folder)
    tiny(name).save_pretrained(folder, safe_serialization=True)
    return folder


for _module in MODULES:
    register(_module)
