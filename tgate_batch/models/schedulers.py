"""Checks and builds the schedulers that a config names."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from inspect import signature, unwrap
from typing import Any

from tgate_batch.config import (
    OWN_SCHEDULER,
    Arm,
    Model,
    ResolvedSampling,
    effective_sampling,
    scheduler_of,
)
from tgate_batch.errors import UserError, one_line
from tgate_batch.models.architecture import class_names
from tgate_batch.models.resolve import ResolvedModel, own_scheduler

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


def check_arguments(model: Model, resolved: ResolvedModel, sampling: ResolvedSampling) -> None:
    """Raises UserError where the scheduler does not take the arguments that the config gives it.

    It is made and told its steps, as the pipeline would: without weights, but with torch.
    """
    if not sampling.scheduler_arguments:
        return
    key = "sampling.scheduler"
    if model.scheduler is not None:
        key = f"models: {model.name}: scheduler"
    own, settings = own_scheduler(resolved) or (None, {})
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
    check_file(resolved, name, key)
    kind = _class(name, key)
    known = _arguments(kind)
    for argument in sampling.scheduler_arguments:
        if argument not in known:
            raise UserError(f"{key}: {name} has no argument {argument!r}; {_hint(argument, kind)}")
    try:
        made = kind.from_config(dict(settings), **sampling.scheduler_arguments)
        made.set_timesteps(sampling.steps)
    except Exception as error:  # each class has its own way
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"{key}: {name} cannot be made with {_listed(sampling.scheduler_arguments)} "
            f"({reason}). Fix: give values that its documentation names"
        ) from None


def check_file(resolved: ResolvedModel, name: str, key: str) -> None:
    """Raises UserError if a scheduler does not take what the model's file says of its own."""
    known = signature(_class(name, key).__init__).parameters if resolved.says else ()
    for argument, value in resolved.says.items():
        if argument not in known:
            raise UserError(
                f"{key}: {resolved.file} says {argument} {value} of itself, and {name} has no such "
                "setting. Fix: name a scheduler that has it, as EulerDiscreteScheduler or "
                "DDIMScheduler"
            )


def refusals(
    model: Model, resolved: ResolvedModel, sampling: ResolvedSampling, arms: Mapping[str, Arm]
) -> Iterator[str]:
    """Yields why schedulers cannot render with the model, one line each, with the arms.

    Each arm's scheduler is made, told the arm's steps, and takes one step of zeros: without
    weights, but with torch.
    """
    refused: dict[str, list[str]] = {}
    for name, arm in arms.items():
        how = effective_sampling(sampling, arm)
        gated = (arm.combined_plan or arm.cache) is not None
        if (fault := _refusal(resolved, how, gated)) is not None:
            refused.setdefault(fault, []).append(name)
    for fault, names in refused.items():
        which = f"arm{'s' if len(names) > 1 else ''} {', '.join(names)}"
        yield (
            f"{which} with {model.name}: {fault}. Fix: name another scheduler, such as "
            "DDIMScheduler, or correct its arguments"
        )


def _refusal(resolved: ResolvedModel, how: ResolvedSampling, gated: bool) -> str | None:
    """Returns why the scheduler cannot render; None if it can or the model is not local."""
    own = own_scheduler(resolved)
    name = how.scheduler
    if name == OWN_SCHEDULER:
        if own is None or resolved.family.is_generic:  # it is the pipeline's own
            return None
        name = own[0]
    try:
        kind = _class(name, "")
    except UserError:  # said where names are checked
        return None
    try:
        scheduler = kind.from_config(dict(own[1] if own else {}), **how.scheduler_arguments)
        for asked in _asked(resolved):
            if not hasattr(scheduler, asked):
                return (
                    f"{resolved.row.pipeline} asks its scheduler for {asked}, and {name} has none"
                )
        if own is not None and not resolved.family.is_generic:
            _step(scheduler, how.steps, gated)
    except Exception as error:  # each class has its own way
        reason = one_line(f"{type(error).__name__}: {error}")
        return f"{name} cannot render in {how.steps} steps ({reason})"
    return None


def _asked(resolved: ResolvedModel) -> list[str]:
    """What the pipeline's code asks of a scheduler beyond what every scheduler has."""
    import diffusers

    kind = getattr(diffusers, resolved.row.pipeline, None)
    functions = [each for each in vars(kind).values() if callable(each)] if kind else []
    codes = [getattr(unwrap(function), "__code__", None) for function in functions]
    names = {name for code in codes if code is not None for name in code.co_names}
    return [asked for asked in ("init_noise_sigma", "scale_model_input") if asked in names]


def _step(scheduler: Any, steps: int, gated: bool) -> None:
    """Takes one step of zeros; raises as the scheduler does, and where a gate cannot follow it."""
    import torch

    from tgate_batch.gate.scheduler_hooks import steps_of_calls

    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(steps, **shift)
    if gated:
        steps_of_calls(scheduler)
    first, sample = scheduler.timesteps[0], torch.zeros(1, 4, 8, 8)
    with torch.random.fork_rng(devices=[]):
        if hasattr(scheduler, "scale_model_input"):
            sample = scheduler.scale_model_input(sample, first)
        scheduler.step(torch.zeros_like(sample), first, sample)


def _arguments(kind: Any) -> list[str]:
    return [each for each in signature(kind.__init__).parameters if each not in ("self", "kwargs")]


def _hint(argument: str, kind: Any) -> str:
    """What to do in place of an argument that the class does not have."""
    known = _arguments(kind)
    if argument == "num_inference_steps":
        return "give the number of steps as sampling.steps"
    if argument in signature(kind.set_timesteps).parameters:
        own = [each for each in ("timestep_spacing", "use_karras_sigmas") if each in known]
        choice = f", or choose their spacing by {' or '.join(own)}" if own else ""
        return (
            f"{argument} are given to a scheduler at each call, which no key of a config does; "
            f"leave them out{choice}"
        )
    near = difflib.get_close_matches(argument, known, n=1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"


def build_scheduler(name: str, current: Any, arguments: Mapping[str, Any] | None = None) -> Any:
    """A scheduler of this class with the settings of the current one, but for the arguments.

    ``name`` may be ``OWN_SCHEDULER``: the class of the current one.
    """
    kind = type(current) if name == OWN_SCHEDULER else _class(name, "sampling.scheduler")
    return kind.from_config(current.config, **arguments or {})


def supports_image_to_image(name: str) -> bool:
    """True if the scheduler supports image-to-image; assumed for the checkpoint's own."""
    return name == OWN_SCHEDULER or hasattr(_class(name, "sampling.scheduler"), "add_noise")


@contextmanager
def noise_by_row(scheduler: Any, generators: list[Any]) -> Iterator[None]:
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


def describe_scheduler(resolved: ResolvedModel, sampling: ResolvedSampling) -> str:
    """Returns a readable description of the scheduler."""
    name = sampling.scheduler
    if name == OWN_SCHEDULER:
        own = own_scheduler(resolved)
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
