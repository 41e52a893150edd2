"""Schedulers by the names and arguments that a config gives them."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

from tgate_batch.config import OWN_SCHEDULER, Model, ResolvedSampling, scheduler_of
from tgate_batch.errors import UserError, one_line
from tgate_batch.models.architecture import class_names
from tgate_batch.models.opened import Opened, own_scheduler

_TREE_SEED = "noise_sampler_seed"  # DPMSolverSDEScheduler's: it takes no generators
_NEEDS = {
    "DPMSolverSDEScheduler": "torchsde",
    "CosineDPMSolverMultistepScheduler": "torchsde",
    "LMSDiscreteScheduler": "scipy",
}


def check_name(given: str | dict[str, Any] | None, key: str = "sampling.scheduler") -> None:
    """Raises UserError, naming the config's key, unless diffusers has such a scheduler.

    A model's own is one too, but not an arm's. Imports nothing of it.
    """
    if given is None:
        return
    name = scheduler_of(given)["scheduler"]
    if name == OWN_SCHEDULER:
        if key.startswith("arms."):
            raise UserError(f"{key}: the checkpoint's own is the run's; leave it out, or name one")
        return
    known = sorted(each for each in class_names("schedulers") if each.endswith("Scheduler"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "e.g. DDIMScheduler, EulerDiscreteScheduler"
        raise UserError(f"{key}: diffusers has no scheduler {name!r}; {hint}")
    needed = _NEEDS.get(name)
    if needed is not None and find_spec(needed) is None:
        raise UserError(
            f"{key}: {name} needs {needed}, which is not installed here; install it, or name "
            "another scheduler"
        )


def check_arguments(model: Model, found: Opened, sampling: ResolvedSampling) -> None:
    """Raises UserError where the scheduler does not take the arguments that the config gives it.

    It is made and told its steps, as the pipeline would: without weights, but with torch.
    """
    if not sampling.scheduler_arguments:
        return
    key = "sampling.scheduler"
    if model.scheduler is not None:
        key = f"models: {model.name}: scheduler"
    own, settings = own_scheduler(found) or (None, {})
    name = own if sampling.scheduler == OWN_SCHEDULER else sampling.scheduler
    if name is None:
        raise UserError(
            f"{key}: which class the checkpoint's own scheduler has is not known before it is "
            "loaded; give the class"
        )
    if _TREE_SEED in sampling.scheduler_arguments:
        raise UserError(
            f"{key}: {_TREE_SEED} is one for a whole batch, and the noise of a picture is of its "
            "own seed alone; leave it out"
        )
    check_file(found, name, key)
    kind = _class(name, key)
    known = [each for each in signature(kind.__init__).parameters if each not in ("self", "kwargs")]
    for argument in sampling.scheduler_arguments:
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise UserError(f"{key}: {name} has no argument {argument!r}; {hint}")
    try:
        made = kind.from_config(dict(settings), **sampling.scheduler_arguments)
        made.set_timesteps(sampling.steps)
    except Exception as error:  # each class has its own way
        said = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"{key}: {name} cannot be made with {_listed(sampling.scheduler_arguments)} ({said}); "
            "give values that its documentation names"
        ) from None


def check_file(found: Opened, name: str, key: str) -> None:
    """Raises UserError if a scheduler does not take what the model's file says of its own."""
    known = signature(_class(name, key).__init__).parameters if found.says else ()
    for argument, value in found.says.items():
        if argument not in known:
            raise UserError(
                f"{key}: {found.file} says {argument} {value} of itself, and {name} has no such "
                "setting. Fix: name a scheduler that has it, as EulerDiscreteScheduler or "
                "DDIMScheduler"
            )


def another_scheduler(name: str, current: Any, arguments: Mapping[str, Any] | None = None) -> Any:
    """A scheduler of this class with the settings of the current one, but for the arguments.

    ``name`` may be ``OWN_SCHEDULER``: the class of the current one.
    """
    kind = type(current) if name == OWN_SCHEDULER else _class(name, "sampling.scheduler")
    return kind.from_config(current.config, **arguments or {})


def begins_with_pictures(name: str) -> bool:
    """Whether a scheduler brings a picture to where its steps begin; the model's own is said to."""
    return name == OWN_SCHEDULER or hasattr(_class(name, "sampling.scheduler"), "add_noise")


@contextmanager
def noise_of_rows(scheduler: Any, generators: list[Any]) -> Iterator[None]:
    """Within the block each row's noise is of its generator alone, in whichever pipeline.

    Those of Wan and Stable Video Diffusion give their scheduler no generators: it would draw from
    the process's. DPMSolverSDEScheduler takes none, and draws one noise for the whole batch unless
    it has a seed for each row.
    """
    kept = vars(scheduler).copy()
    if "generator" in signature(scheduler.step).parameters:
        scheduler.step = partial(scheduler.step, generator=generators)
    elif hasattr(scheduler, _TREE_SEED):
        setattr(scheduler, _TREE_SEED, [generator.initial_seed() for generator in generators])
    try:
        yield
    finally:
        for name in ("step", _TREE_SEED):
            vars(scheduler).pop(name, None)
            if name in kept:
                vars(scheduler)[name] = kept[name]


def told(found: Opened, sampling: ResolvedSampling) -> str:
    """The scheduler that draws, as a person reads it."""
    name = sampling.scheduler
    if name == OWN_SCHEDULER:
        own = own_scheduler(found)
        name = f"{own[0]} ({OWN_SCHEDULER})" if own is not None else f"{OWN_SCHEDULER} scheduler"
    if sampling.scheduler_arguments:
        name += f" with {_listed(sampling.scheduler_arguments)}"
    return name


def _class(name: str, key: str) -> Any:
    import diffusers

    kind: Any = getattr(diffusers, name, None)
    if not hasattr(kind, "from_config") or not issubclass(kind, diffusers.SchedulerMixin):
        raise UserError(
            f"{key}: diffusers has no scheduler {name!r}; e.g. DDIMScheduler, "
            "EulerDiscreteScheduler, DPMSolverMultistepScheduler"
        )
    return kind


def _listed(arguments: Mapping[str, Any]) -> str:
    return one_line(", ".join(f"{key} {value}" for key, value in arguments.items()))
