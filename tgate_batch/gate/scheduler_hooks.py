"""Hooks on a pipeline's scheduler and progress bar that report each step and the loop's end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import wraps
from inspect import signature
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch


class _StepHook:
    """Wraps a scheduler's ``step`` so that several pipelines can subscribe to it."""

    def __init__(self, scheduler: Any) -> None:
        self.listeners: list[tuple[Any, Callable[[int], None]]] = []
        self.before = before = vars(scheduler).get("step")
        names = signature(type(scheduler).step)  # the sample is not the third argument everywhere

        @wraps(type(scheduler).step)  # pipelines look for `generator` in its signature
        def step(asked: Any, *args: Any, **kwargs: Any) -> Any:
            if asked is not scheduler:
                return type(asked).step(asked, *args, **kwargs)
            for pipe, stepped in self.listeners:  # which keeps this object with its scheduler
                if pipe.scheduler is scheduler:
                    given = names.bind(asked, *args, **kwargs).arguments
                    stepped(len(given["sample"]))
            own = MethodType(type(asked).step, asked) if before is None else before
            return own(*args, **kwargs)

        scheduler.step = MethodType(step, scheduler)


# By scheduler. Listeners refer to pipelines, and these to the scheduler: nothing here keeps them.
_heard: WeakKeyDictionary[Any, ref[_StepHook]] = WeakKeyDictionary()


def watch_scheduler(pipe: Any, stepped: Callable[[int], None], stack: ExitStack) -> None:
    """Calls ``stepped`` with the sample's rows before every step of the present scheduler.

    It does until ``stack`` closes. Some pipelines step a deep copy: that is another scheduler.
    """
    known = _heard.get(pipe.scheduler)
    heard = known() if known is not None else None
    if heard is None:
        heard = _StepHook(pipe.scheduler)
        _heard[pipe.scheduler] = ref(heard)
    listener = pipe, stepped
    heard.listeners.append(listener)
    stack.callback(_unwatch, pipe.scheduler, heard, listener)


def _unwatch(scheduler: Any, heard: _StepHook, listener: tuple[Any, Callable[[int], None]]) -> None:
    heard.listeners.remove(listener)
    if not heard.listeners:
        _heard.pop(scheduler, None)
        _restore(scheduler, "step", heard.before)


def watch_loop(
    pipe: Any, opened: Callable[[int | None], bool], end: Callable[[], None], stack: ExitStack
) -> None:
    """Calls ``opened(steps)`` for each progress bar; on True, calls ``end`` when it closes.

    Stops when ``stack`` closes. Does nothing if the pipeline has no ``progress_bar``.
    """
    if not hasattr(pipe, "progress_bar"):
        return
    before = vars(pipe).get("progress_bar")
    bars = pipe.progress_bar

    def progress_bar(
        asked: Any, iterable: Any = None, total: int | None = None, **more: Any
    ) -> Any:
        if asked is not pipe:  # a copy
            return type(asked).progress_bar(asked, iterable, total, **more)
        bar = bars(iterable, total, **more) if total is not None else bars(iterable, **more)
        steps = total if iterable is None or total is not None else len(iterable)
        return _LoopHook(bar, end) if opened(steps) else bar

    vars(pipe)["progress_bar"] = MethodType(progress_bar, pipe)
    stack.callback(_restore, pipe, "progress_bar", before)


class _LoopHook:
    """Wraps a progress bar (in a ``with`` or a ``for``) and calls ``end`` when it closes."""

    def __init__(self, bar: Any, end: Callable[[], None]) -> None:
        self._bar = bar
        self._end = end

    def __enter__(self) -> Any:
        return self._bar.__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._end()
        return self._bar.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._bar
        finally:
            self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


def _restore(owner: Any, name: str, before: Any) -> None:
    vars(owner).pop(name, None)
    if before is not None:
        vars(owner)[name] = before


def steps_of_calls(scheduler: Any) -> list[int]:
    """The step of every denoiser call of one pipeline call, in order, after ``set_timesteps``.

    A second-order scheduler (Heun, KDPM2) calls the denoiser twice a step; both calls act alike.
    PNDM's first step is a trial and its correction, so its first two calls are step 0. Where a
    pipeline makes fewer calls (image-to-image, ``denoising_end``) the tail is not used.

    Raises ValueError for a scheduler whose calls do not map to steps.
    """
    calls = len(scheduler.timesteps)
    if any(kind.__name__ == "PNDMScheduler" for kind in type(scheduler).__mro__):
        if not scheduler.config.skip_prk_steps:
            raise ValueError(
                "PNDMScheduler with Runge-Kutta steps calls the denoiser four times in some steps "
                "and once in others, and T-GATE counts steps by calls; set skip_prk_steps=True or "
                "use DDIM, Euler or DPM++ multistep"
            )
        return [max(call - 1, 0) for call in range(calls)]
    order = getattr(scheduler, "order", 1)
    return [call // order for call in range(calls)]


def begin_of(scheduler: Any, timestep: Any) -> int:
    """The index of the timestep at which a loop begins; 0 if ``timestep`` is none of them."""
    if getattr(scheduler, "begin_index", None) is not None:
        return scheduler.begin_index
    if timestep is None:
        return 0
    first = float(timestep.flatten()[0] if isinstance(timestep, torch.Tensor) else timestep)
    return next((i for i, t in enumerate(scheduler.timesteps.tolist()) if t == first), 0)
