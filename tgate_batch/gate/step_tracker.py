"""Tracks one pipeline call: the current step, the guidance branches, and the end of the loop.

All three are read from the call.

- A step ends when the pipeline calls ``scheduler.step``.
- The number of branches is the denoiser's rows divided by the sample's rows that the previous
  ``scheduler.step`` got. It is unknown at the first call only: nothing is halved there, and a mean
  is taken after the scheduler's step.
- The loop ends when its progress bar closes (also after an exception), or with the last step.
"""

import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tgate_batch.gate.denoiser_hook import DenoiserHook
from tgate_batch.gate.plan import Plan, SelfAttentionInterval
from tgate_batch.gate.scheduler_hooks import begin_of, steps_of_calls, watch_loop, watch_scheduler
from tgate_batch.gate.table import Action, StepActions


class GateNotReached(UserWarning):
    """Warns that a pipeline call ends before the gate of its plan."""


@dataclass
class Summary:
    """Counts of the last pipeline call in a block; partial if the call was interrupted.

    ``steps`` begun; ``rows`` that the denoiser ran on, call by call; attention layers that by the
    plan were ``computed`` (of these, ``stored`` were kept too) and ``reused``, all calls together,
    a ControlNet's too; ``peak_bytes`` of stored output. A forecast runs on no rows.
    """

    steps: int = 0
    rows: list[int] = field(default_factory=list)
    computed: int = 0
    stored: int = 0
    reused: int = 0
    peak_bytes: int = 0

    def clear(self) -> None:
        """Resets all counts for a new pipeline call."""
        vars(self).update(vars(Summary()))


class StepTracker:
    """The progress of the current pipeline call; all hooks of a ``with`` block report to it."""

    def __init__(
        self,
        pipe: Any,
        plan: Plan | None,
        hooks: list[DenoiserHook],
        guided: bool | None,
    ) -> None:
        self.hooks = hooks
        self.deepcache: Any = None
        self.summary = Summary()
        self._denoiser = hooks[0]
        self._pipe = pipe
        self._plan = plan
        self._told = guided
        self._bar_steps: int | None = None  # of the open progress bar
        self._pictures: int | None = None  # rows of the sample, None before the first step
        self._thread: int | None = None  # whose loop runs
        self._is_crossed = False  # a second thread began a loop meanwhile
        self.end()

    @property
    def cached_bytes(self) -> int:
        """Bytes of output that are stored now."""
        return sum(hook.stored_bytes for hook in self.hooks)

    def watch(self, stack: ExitStack) -> None:
        """Subscribes to the pipeline's steps and to the end of its loop, until ``stack`` closes."""
        stack.callback(self.end)
        watch_loop(self._pipe, self.opened, self.end, stack)
        self._watched = self._pipe.scheduler
        watch_scheduler(self._pipe, self.on_scheduler_step, stack)
        self._stack = stack

    def opened(self, steps: int | None) -> bool:
        """Handles a new progress bar of ``steps``; returns True if it is the denoising loop's.

        Raises ValueError if another thread's loop is running.
        """
        me = threading.get_ident()
        if self._thread not in (None, me):
            self._is_crossed = True
            raise ValueError(self._two_threads())
        if self._evaluation > 0 or self._in_step:
            return False
        self._check_module()
        self._thread = me
        self._bar_steps = steps
        return True

    def end(self) -> None:
        """Resets the state after the denoising loop and frees every stored tensor."""
        self._timesteps: Any = None
        self._thread, self._is_crossed = None, False
        self._bar_steps = None
        self._evaluation = 0
        self._in_step = False
        for hook in self.hooks:
            hook.reset()

    def on_denoiser_call(self, hook: DenoiserHook, rows: int, timestep: Any = None) -> None:
        """Handles a call with ``rows`` rows; raises ValueError if its step is unclear."""
        if self._is_crossed:
            raise ValueError(self._two_threads())
        scheduler = self._pipe.scheduler
        if scheduler is not self._watched:  # replaced inside the block
            self._watched = scheduler
            watch_scheduler(self._pipe, self.on_scheduler_step, self._stack)
        # `set_timesteps`, with which every pipeline call begins, makes a new tensor.
        if scheduler.timesteps is not self._timesteps:
            if self._bar_steps is not None and 0 < self._evaluation < self._counted:
                raise ValueError(
                    f"the {type(scheduler).__name__} of {type(self._pipe).__name__} got other "
                    "timesteps in the middle of its loop, so its steps cannot be counted. Fix: use "
                    "a separate scheduler in callbacks and a separate pipeline in each thread"
                )
            self._begin(scheduler, timestep)
        if hook is self._denoiser and hook.calls >= hook.traits.calls:
            raise ValueError(
                f"{type(self._pipe).__name__} calls {type(hook.module).__name__} again before a "
                f"step of its {type(scheduler).__name__}, so its steps and branches cannot be read."
                " Fix: use a pipeline that runs all branches in one batch and steps its own "
                "scheduler, and call no other on this denoiser inside the block"
            )
        if not self._in_step:
            self._next_evaluation(scheduler)
        before, pictures, row = hook.branches, self._pictures, self._table[self._step]
        # What changes the first output cannot wait for the scheduler. A ControlNet can: it runs for
        # one branch or two, whatever the denoiser does.
        if self._evaluation == 0 and hook.leads and (not row.guided or row.strength != 1):
            pictures = rows // 2 if self._told and rows % 2 == 0 else rows
            hook.branches = 2 if self._told else hook.branches
        needed = {step for later in self._table[self._step + 1 :] for step, _ in later.sources}
        place = self._evaluation - self._steps.index(self._step)
        hook.begin_call(rows, pictures, self._step, place, needed)
        if hook.rows_run == 0:
            return
        if self.deepcache is None:
            hook.check_stored(self._step)
        elif hook is self._denoiser:
            self._tell_deepcache(guidance_ends=(before, hook.branches) == (2, 1))
        self._sum_up(hook)

    def on_denoiser_return(self) -> None:
        """Handles the end of a call of a body."""
        self.summary.peak_bytes = max(self.summary.peak_bytes, self.cached_bytes)

    def on_scheduler_step(self, pictures: int) -> None:
        """Handles a scheduler step of ``pictures`` rows; raises ValueError if they changed."""
        if not self._in_step:  # another pipeline's step, or a callback's
            self._check_module()
            return
        if self._pictures not in (None, pictures):
            raise ValueError(
                f"the sample went from {self._pictures} to {pictures} images within one pipeline "
                "call, so the stored attention no longer fits. Fix: keep the batch size constant"
            )
        for hook in self.hooks:
            if hook.calls:
                hook.end_step(pictures, self._step)
        if self._pictures is None:
            self._check_guidance()
        self._pictures = pictures
        self._in_step = False
        self._evaluation += 1
        if self._evaluation == self._counted:
            if self._bar_steps is None:
                for hook in self.hooks:
                    hook.reset()
        elif self._table[self._steps[self._evaluation]].is_forecast:
            for hook in self.hooks:
                hook.forecast_next()

    def _check_module(self) -> None:
        """Raises ValueError if the pipeline has another denoiser now."""
        module = self._denoiser.module
        parts = [getattr(self._pipe, name, None) for name in ("unet", "transformer")]
        if not any(module in (part, getattr(part, "_orig_mod", None)) for part in parts):
            raise ValueError(
                f"the {type(module).__name__} of {type(self._pipe).__name__} was replaced inside "
                "the block, so the plan would not act. Fix: leave the block (disable_tgate) before "
                "replacing it"
            )

    def _two_threads(self) -> str:
        name = type(self._pipe).__name__
        return (
            f"two threads call one {name} at the same time, so its steps cannot be told apart. "
            f"Fix: use one {name} per thread, or a lock around each call"
        )

    def _count(self, scheduler: Any, timestep: Any) -> int:
        """Returns the number of denoiser evaluations in this pipeline call.

        Without a progress bar of this pipeline's loop, the call is a sibling's or a loop written by
        hand, and what this pipeline counted last time is not its number.
        """
        counted = getattr(self._pipe, "_num_timesteps", None)
        if self._bar_steps is None and hasattr(self._pipe, "progress_bar"):
            counted = len(self._steps) - begin_of(scheduler, timestep)
        return min(counted or len(self._steps), len(self._steps))

    def _begin(self, scheduler: Any, timestep: Any) -> None:
        for hook in self.hooks:
            hook.reset()
        self.summary.clear()
        self._timesteps = scheduler.timesteps
        self._steps = steps_of_calls(scheduler)
        self._counted = self._count(scheduler, timestep)
        self._evaluation = self._computed = 0
        self._step = -1
        self._in_step = False
        self._pictures = None
        # A loop that ends early has a bar of timesteps, of which a step may be two.
        steps = self._steps[self._counted - 1] + 1
        steps = min(self._bar_steps or steps, steps)
        self._table: tuple[StepActions, ...] = (StepActions(),) * len(self._steps)
        self._last = StepActions()  # of the steps that were computed
        if self._plan is None:
            return
        plan = self._plan.at(steps)
        self._table = plan.schedule(self._steps[-1] + 1, skips=self.deepcache is not None)
        acts = any(
            not row.guided or row.is_forecast or row.strength != 1 for row in self._table[:steps]
        )
        if not acts and plan.part(SelfAttentionInterval) is None:
            warnings.warn(
                f"{plan} is never reached: {type(self._pipe).__name__} runs {steps} steps, all "
                "with guidance. Fix: choose an earlier step, or a fraction of the steps (0.4)",
                GateNotReached,
                stacklevel=2,
            )

    def _next_evaluation(self, scheduler: Any) -> None:
        if self._evaluation == len(self._steps):
            raise ValueError(
                f"{type(scheduler).__name__} set {len(self._steps)} timesteps and the denoiser is "
                "called once more, so its steps cannot be counted. Fix: use DDIM, Euler or DPM++ "
                "multistep"
            )
        step = self._steps[self._evaluation]
        self._is_new = step != self._step
        self._step = step
        self._in_step = True
        self.summary.steps += self._is_new
        for hook in self.hooks:
            hook.apply_actions(self._table[step], self._is_new, self.deepcache is not None)

    def _tell_deepcache(self, guidance_ends: bool) -> None:
        now, before = self._table[self._step], self._last
        changes = self._is_new and (now.mean or now.guided != before.guided)
        self.deepcache.at_call(self._computed, full=not self._computed or guidance_ends or changes)
        self._computed += 1
        self._last = now

    def _check_guidance(self) -> None:
        """Raises ValueError if the first step's branches contradict ``guided`` or the pipeline."""
        runs = self._denoiser.branches == 2
        name = type(self._pipe).__name__
        if getattr(self._pipe, "do_perturbed_attention_guidance", False):
            raise ValueError(
                f"{name} runs a branch for perturbed-attention guidance, which T-GATE does not "
                "support. Fix: use pag_scale=0 or the pipeline without it"
            )
        if runs and getattr(self._pipe, "do_classifier_free_guidance", True) is False:
            raise ValueError(
                f"{name} runs two branches without classifier-free guidance, and T-GATE would use "
                "the first as the negative prompt's. Fix: run this pipeline without the gate"
            )
        if self._told not in (None, runs):
            raise ValueError(
                f"gated(guided={self._told}) but {name} runs {'with' if runs else 'without'} "
                "guidance. Fix: leave `guided` out, or change guidance_scale"
            )

    def _sum_up(self, hook: DenoiserHook) -> None:
        if hook is self._denoiser:
            self.summary.rows.append(hook.rows_run)
        for layer in hook.layers:
            action = hook.now.cross if layer.is_cross else hook.now.self_
            self.summary.reused += action is Action.REUSE
            self.summary.computed += action is not Action.REUSE
            self.summary.stored += action is Action.STORE
