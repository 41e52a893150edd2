"""Hooks on a denoiser or a ControlNet that run a single guidance branch after the gate."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from tgate_batch.gate.layers import CurrentActions, GatedAttention, attach
from tgate_batch.gate.plan import Action, StepActions
from tgate_batch.gate.supported_denoisers import DenoiserTraits

# What a ControlNet adds to the denoiser. In guess mode its negative half is zeros.
_RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")


class DenoiserHook:
    """One gated module and its attention layers, which read ``now``.

    After the gate the module runs on one half of every batch and its output is duplicated, so that
    the pipeline's guidance ``u + s * (p - u)`` becomes ``u``. A module that is called once per
    branch runs for the first branch only, and its output is reused for the second.

    ``calls`` counts the calls since the scheduler's last step. ``branches`` is the number of
    guidance branches, None until it is known.
    """

    def __init__(self, module: torch.nn.Module, traits: DenoiserTraits) -> None:
        self.module = module
        self.traits = traits
        self.layers: list[GatedAttention] = []
        self.now = CurrentActions()
        self.reset()

    def __deepcopy__(self, memo: dict) -> "DenoiserHook":
        """A deep-copied module keeps this hook, which ignores modules other than its own."""
        return self

    def follow(
        self,
        entered: Callable[["DenoiserHook", int], None],
        left: Callable[[], None],
        has_plan: bool,
        stack: ExitStack,
    ) -> None:
        """Installs the hooks until ``stack`` closes: each call is reported, then gated.

        Raises ValueError if the module cannot be gated.
        """
        self._entered, self._left = entered, left
        stack.callback(self.reset)
        if has_plan:
            self.layers = attach(self.module, self.now, stack)
        # Use torch's hooks: pipelines that offload replace the denoiser's `forward` after every
        # call, which would remove a hook installed there.
        before = self.module.register_forward_pre_hook(self._before, with_kwargs=True)
        stack.callback(before.remove)
        stack.callback(self.module.register_forward_hook(self._after).remove)

    def reset(self) -> None:
        """Resets the state to before a pipeline call and frees every stored tensor."""
        self.branches: int | None = None
        self.calls = self.rows = 0
        self._halves = self._doubled = self._late_mean = False
        self._take_back()
        self.now.cross = self.now.self_ = Action.COMPUTE
        self.now.mean = False
        for layer in self.layers:
            layer.caches.clear()

    def apply_actions(self, actions: StepActions, frees_self: bool) -> None:
        """Sets a step's actions; ``frees_self`` drops the stored self-attention."""
        self._actions = actions
        self.now.cross, self.now.self_ = actions.cross, actions.self_
        if frees_self:
            for layer in self.layers:
                if not layer.is_cross:
                    layer.caches.clear()

    def begin_call(self, rows: int, pictures: int | None, step: int) -> None:
        """Starts a call with ``rows`` rows; ``pictures`` is the sample's rows, None if unknown.

        Raises ValueError if the rows are neither one branch nor two, or if guidance starts late.
        """
        self.now.number, self.calls, self.rows = self.calls, self.calls + 1, rows
        before = self.branches
        if not self.traits.branch_a_call:
            self._branch_out(self._branches_of(rows, pictures), step)
        if self._doubled and (before, self.branches) == (2, 1):
            self._doubled = False
            for layer in self.layers:
                layer.keep_positive()
        in_rows = self.branches == 2 and not self.traits.branch_a_call
        self.now.mean = self._actions.mean and in_rows
        self._late_mean = self._actions.mean and not in_rows
        self._halves = in_rows and not self._actions.guided

    @property
    def rows_run(self) -> int:
        """The number of rows that the module runs on in the current call; 0 if it is skipped."""
        if self._stands_in:
            return 0
        return self.rows // 2 if self._halves else self.rows

    def check_stored(self, step: int) -> None:
        """Raises ValueError if the current call reuses attention that is not stored."""
        for layer in self.layers:
            action = self.now.cross if layer.is_cross else self.now.self_
            if action is Action.REUSE and self.now.number not in layer.caches:
                raise ValueError(
                    f"step {step} would reuse attention that {type(self.module).__name__} has not "
                    "stored, because guidance or a ControlNet starts late. Fix: start it at the "
                    "first step"
                )

    def end_step(self, pictures: int, step: int) -> None:
        """Ends a step of ``pictures`` images, after which the number of branches is known.

        Raises ValueError as ``begin_call`` does.
        """
        known = self.calls if self.traits.branch_a_call else self._branches_of(self.rows, pictures)
        self._branch_out(known, step)
        self._take_back()
        if self._late_mean:
            for layer in self.layers:
                layer.average(known or 1)
        if Action.STORE in (self.now.cross, self.now.self_):
            whole = self._actions.guided and not self._actions.mean
            self._doubled = whole and known == 2 and not self.traits.branch_a_call
        self.calls = 0

    def _branches_of(self, rows: int, pictures: int | None) -> int | None:
        if pictures is None:
            return None
        if rows not in (pictures, 2 * pictures):
            raise ValueError(
                f"{type(self.module).__name__} runs {rows} rows for {pictures} images, that is "
                f"{rows / pictures:g} branches; T-GATE supports one (no guidance) or two. Fix: "
                "disable further guidance (perturbed attention, image guidance) and callbacks that "
                "drop images"
            )
        return rows // pictures

    def _branch_out(self, branches: int | None, step: int) -> None:
        if self.branches == 1 and branches == 2:
            raise ValueError(
                f"guidance begins at step {step}, but the attention stored before it has no "
                "negative branch. Fix: run guidance from the first step"
            )
        self.branches = branches

    @torch.compiler.disable
    def _before(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> Any:
        """Reports the call to the pipeline call, then halves the inputs after the gate."""
        if module is not self.module:
            return None
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        self._entered(self, len(sample))
        if not self._halves:
            return None
        residuals = {name: kwargs[name] for name in _RESIDUALS if kwargs.get(name) is not None}
        args, kwargs = _half((args, kwargs), self.rows, self.traits.kept_branch)
        return args, kwargs | _half(residuals, self.rows, 1)

    @torch.compiler.disable
    def _after(self, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        """Duplicates one branch's output, or keeps it for the second branch's call."""
        if module is not self.module:
            return None
        self._left()
        if self._halves:
            return _twice(output)
        if self.traits.branch_a_call and self.branches == 2 and not self._actions.guided:
            self._stand_in(output)
        return None

    def _stand_in(self, output: Any) -> None:
        if self.now.number == 0:  # a hook cannot keep a module from running
            self._own_forward = vars(self.module).get("forward")
            self._output = output
            vars(self.module)["forward"] = self._given
        else:
            self._take_back()

    def _given(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    @property
    def _stands_in(self) -> bool:
        return vars(self.module).get("forward") == self._given

    def _take_back(self) -> None:
        if self._stands_in:
            del vars(self.module)["forward"]
            if self._own_forward is not None:
                vars(self.module)["forward"] = self._own_forward
        self._output = self._own_forward = None


def _half(value: Any, batch: int, index: int) -> Any:
    """``value`` with every tensor of ``batch`` rows cut to its half ``index`` (0 or 1)."""
    if isinstance(value, torch.Tensor):
        if value.ndim > 0 and value.shape[0] == batch:
            return value[batch // 2 * index : batch // 2 * (index + 1)]
        return value
    if isinstance(value, dict):
        return {key: _half(item, batch, index) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_half(item, batch, index) for item in value)
    return value


def _twice(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return torch.cat([output, output])
    if isinstance(output, dict):
        return type(output)(**{key: _twice(item) for key, item in output.items()})
    return type(output)(_twice(item) for item in output)
