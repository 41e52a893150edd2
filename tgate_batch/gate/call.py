"""Reading one pipeline call as it runs: which step a call of the denoiser is, how many branches it

has, and when the loop is over. Nothing of it is told, and nothing is guessed.

- A step is done when the pipeline calls ``scheduler.step``.
- Branches are the denoiser's rows over the sample's that ``scheduler.step`` gets: those of the
  step before, which the step itself cannot change. Only at the very first call they are not yet
  known; nothing is halved there, and a mean waits for the scheduler.
- The loop is over when its progress bar closes, whatever closed it, or else with the last step.
"""

import threading
import warnings
from contextlib import ExitStack
from typing import Any

from tgate_batch.gate.body import Body
from tgate_batch.gate.plan import Action, GatePlan, GuidanceInterval, StepActions
from tgate_batch.gate.steps import steps_of_calls
from tgate_batch.gate.summary import Summary
from tgate_batch.gate.watch import watch_loop, watch_scheduler

_PLAIN = StepActions(Action.COMPUTE, Action.COMPUTE, guided=True, mean=False)


class GateNotReached(UserWarning):
    """A pipeline call has no step after its plan's gate."""


class PipelineCall:
    """How far the current pipeline call is; one for a block, which all its hooks report to."""

    def __init__(
        self,
        pipe: Any,
        plan: GatePlan | GuidanceInterval | None,
        bodies: list[Body],
        guided: bool | None,
    ) -> None:
        self.bodies = bodies
        self.deepcache: Any = None
        self.summary = Summary()
        self._denoiser = bodies[0]
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
        """Bytes of attention output that the layers hold at this moment."""
        layers = (layer for body in self.bodies for layer in body.layers)
        return sum(cache.nbytes for layer in layers for cache in layer.caches.values())

    def watch(self, stack: ExitStack) -> None:
        """Hears of the pipeline's steps and of its loop's end, until ``stack`` closes."""
        stack.callback(self.end)
        watch_loop(self._pipe, self.opened, self.end, stack)
        self._watched = self._pipe.scheduler
        watch_scheduler(self._pipe, self.stepped, stack)
        self._stack = stack

    def opened(self, steps: int | None) -> bool:
        """A progress bar of ``steps`` opens; whether it frames the loop, and is not one within.

        Raises ValueError while another thread's loop runs.
        """
        me = threading.get_ident()
        if self._thread not in (None, me):
            self._is_crossed = True
            raise ValueError(self._two_threads())
        if self._evaluation > 0 or self._in_step:
            return False
        self._thread = me
        self._bar_steps = steps
        return True

    def end(self) -> None:
        """The denoising loop is over, or was left: forgets it, and frees every stored tensor."""
        self._timesteps: Any = None
        self._thread, self._is_crossed = None, False
        self._bar_steps = None
        self._evaluation = 0
        self._in_step = False
        for body in self.bodies:
            body.forget()

    def entered(self, body: Body, rows: int) -> None:
        """``body`` is called with ``rows`` rows. Raises ValueError where its step is unclear."""
        if self._is_crossed:
            raise ValueError(self._two_threads())
        scheduler = self._pipe.scheduler
        if scheduler is not self._watched:  # replaced inside the block
            self._watched = scheduler
            watch_scheduler(self._pipe, self.stepped, self._stack)
        # `set_timesteps`, with which every pipeline call begins, makes a new tensor.
        if scheduler.timesteps is not self._timesteps:
            if self._bar_steps is not None and 0 < self._evaluation < self._counted:
                raise ValueError(
                    f"the {type(scheduler).__name__} of {type(self._pipe).__name__} got other "
                    "timesteps in the middle of its loop, so its steps cannot be counted; give "
                    "what runs in a callback a scheduler of its own, and each thread its own "
                    "pipeline"
                )
            self._begin(scheduler)
        if body is self._denoiser and body.calls and not body.kind.branch_a_call:
            raise ValueError(
                f"{type(self._pipe).__name__} calls {type(body.module).__name__} again before a "
                f"step of its {type(scheduler).__name__}, so its steps and branches cannot be read;"
                " use a pipeline that runs all branches in one batch and steps its own scheduler, "
                "and call no other on this denoiser inside the block"
            )
        if not self._in_step:
            self._next_evaluation(scheduler)
        before, pictures = body.branches, self._pictures
        if self._evaluation == 0 and not self._table[0].guided:  # it cannot wait for the scheduler
            pictures = rows // 2 if self._told else rows
        body.enter(rows, pictures, self._step)
        if body.rows_run == 0:
            return
        if self.deepcache is None:
            body.check_stored(self._step)
        elif body is self._denoiser:
            self._tell_deepcache(guidance_ends=(before, body.branches) == (2, 1))
        self._sum_up(body)

    def left(self) -> None:
        """A call of a body is done."""
        self.summary.peak_bytes = max(self.summary.peak_bytes, self.cached_bytes)

    def stepped(self, pictures: int) -> None:
        """The scheduler steps a sample of ``pictures`` rows. Raises ValueError for lost ones."""
        if not self._in_step:  # another pipeline's step, or a callback's
            return
        if self._pictures not in (None, pictures):
            raise ValueError(
                f"the sample went from {self._pictures} to {pictures} pictures within one pipeline "
                "call, so stored attention no longer fits; keep the batch as it is"
            )
        for body in self.bodies:
            if body.calls:
                body.settle(pictures, self._step)
        if self._pictures is None:
            self._check_guidance()
        self._pictures = pictures
        self._in_step = False
        self._evaluation += 1
        if self._bar_steps is None and self._evaluation == self._counted:
            for body in self.bodies:
                body.forget()

    def _two_threads(self) -> str:
        name = type(self._pipe).__name__
        return (
            f"two threads call one {name} at the same time, and its steps belong to both; give "
            f"each thread its own {name}, or let one call at a time with a lock"
        )

    @property
    def _counted(self) -> int:
        """The denoiser's evaluations in this pipeline call, as far as the pipeline says."""
        counted = getattr(self._pipe, "_num_timesteps", None) or len(self._steps)
        return min(counted, len(self._steps))

    def _begin(self, scheduler: Any) -> None:
        for body in self.bodies:
            body.forget()
        self.summary.clear()
        self._timesteps = scheduler.timesteps
        self._steps = steps_of_calls(scheduler)
        self._evaluation = 0
        self._step = -1
        self._in_step = False
        self._pictures = None
        # A loop that ends early has a bar of timesteps, of which a step may be two.
        steps = self._steps[self._counted - 1] + 1
        steps = min(self._bar_steps or steps, steps)
        self._table: tuple[StepActions, ...] = (_PLAIN,) * len(self._steps)
        if self._plan is None:
            return
        plan = self._plan.at(steps)
        self._table = plan.schedule(self._steps[-1] + 1, skips=self.deepcache is not None)
        if all(actions.guided for actions in self._table[:steps]):
            warnings.warn(
                f"{plan} is never reached: {type(self._pipe).__name__} runs {steps} steps, with "
                "guidance to the end; choose an earlier step, or a part of the steps such as 0.4",
                GateNotReached,
                stacklevel=2,
            )

    def _next_evaluation(self, scheduler: Any) -> None:
        if self._evaluation == len(self._steps):
            raise ValueError(
                f"{type(scheduler).__name__} set {len(self._steps)} timesteps and the denoiser is "
                "called once more, so its steps cannot be counted; use DDIM, Euler or DPM++ "
                "multistep"
            )
        step = self._steps[self._evaluation]
        self._is_new = step != self._step
        self._step = step
        self._in_step = True
        self.summary.steps += self._is_new
        actions = self._table[step]
        frees = self._is_new and actions.self_ is not Action.REUSE and self.deepcache is None
        for body in self.bodies:
            body.act(actions, frees)

    def _tell_deepcache(self, guidance_ends: bool) -> None:
        now, before = self._table[self._step], self._table[self._step - 1]
        changes = self._is_new and (now.mean or now.guided != before.guided)
        self.deepcache.at_call(
            self._evaluation, full=self._evaluation == 0 or guidance_ends or changes
        )

    def _check_guidance(self) -> None:
        """Raises ValueError where the first step's branches contradict what is said of them."""
        runs = self._denoiser.branches == 2
        name = type(self._pipe).__name__
        if getattr(self._pipe, "do_perturbed_attention_guidance", False):
            raise ValueError(
                f"{name} runs a branch for perturbed-attention guidance, and T-GATE knows none; "
                "use pag_scale=0 or the pipeline without it"
            )
        if runs and getattr(self._pipe, "do_classifier_free_guidance", True) is False:
            raise ValueError(
                f"{name} runs two branches without classifier-free guidance, and T-GATE would take "
                "the first for the negative prompt's; leave the gate out"
            )
        if self._told not in (None, runs):
            raise ValueError(
                f"gated(guided={self._told}) but {name} runs {'with' if runs else 'without'} "
                "guidance here; leave `guided` out, or change guidance_scale"
            )

    def _sum_up(self, body: Body) -> None:
        if body is self._denoiser:
            self.summary.rows.append(body.rows_run)
        for layer in body.layers:
            action = body.now.cross if layer.is_cross else body.now.self_
            self.summary.reused += action is Action.REUSE
            self.summary.computed += action is not Action.REUSE
            self.summary.stored += action is Action.STORE
