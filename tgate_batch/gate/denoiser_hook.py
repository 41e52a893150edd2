"""Hooks on a denoiser or a ControlNet that execute one row of a plan's table."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from tgate_batch.gate.layers import CurrentActions, GatedAttention, attach
from tgate_batch.gate.supported_denoisers import DenoiserTraits
from tgate_batch.gate.table import Action, StepActions

# What a ControlNet adds to the denoiser. In guess mode its negative half is zeros.
_RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
_NOT_ROWS = ("ip_adapter_masks",)  # of adapters, not of images


class DenoiserHook:
    """One hooked module and its attention layers, which read ``now``.

    Where one branch runs, the module gets one half of every batch, and its output is given for
    both, so that the pipeline's guidance ``u + s * (p - u)`` becomes ``u``; or the other half is
    that output plus the stored difference ``u - p``. A module that is called once per branch runs
    for the first branch only. Where no branch runs, its output is forecast from stored ones. What
    is stored is the output of both branches, before a weight of the guidance changes it.

    ``calls`` counts the calls since the scheduler's last step. ``branches`` is the number of
    guidance branches, None until it is known. ``leads``: False for a ControlNet.
    """

    def __init__(self, module: torch.nn.Module, traits: DenoiserTraits, leads: bool = True) -> None:
        self.module = module
        self.traits = traits
        self.leads = leads
        self.layers: list[GatedAttention] = []
        self.now = CurrentActions()
        self._actions = StepActions()
        self._substitute: Callable[[], Any] | None = None
        self._is_installed = False
        self.reset()

    def __deepcopy__(self, memo: dict) -> "DenoiserHook":
        """A deep-copied module keeps this hook, which ignores modules other than its own."""
        return self

    def __reduce__(self) -> Any:
        raise ValueError(
            f"this {type(self.module).__name__} is gated, and its hooks cannot be pickled. Fix: "
            "pickle the pipeline outside the block (disable_tgate)"
        )

    def follow(
        self,
        entered: Callable[["DenoiserHook", int, Any], None],
        left: Callable[[], None],
        has_layers: bool,
        stack: ExitStack,
    ) -> None:
        """Installs the hooks until ``stack`` closes: each call is reported, then changed.

        Raises ValueError if the module's layers cannot be gated.
        """
        self._entered, self._left = entered, left
        stack.callback(self.reset)
        if has_layers:
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
        self._raw: dict[int, Any] = {}  # this step's output by the number of the call
        self._difference: Any = None
        # Of the steps to forecast from, by the place of the call in its step, and its step.
        self._outputs: dict[tuple[int, int], dict[int, Any]] = {}
        self._take_back()
        self.now.cross = self.now.self_ = Action.COMPUTE
        self.now.mean = False
        for layer in self.layers:
            layer.caches.clear()

    @property
    def stored_bytes(self) -> int:
        """Bytes of attention output, differences and outputs that are stored now."""
        kept = [cache for layer in self.layers for cache in layer.caches.values()]
        kept += _tensors((self._outputs, self._difference))
        return sum(tensor.nbytes for tensor in kept)

    def apply_actions(self, actions: StepActions, is_new: bool, skips: bool) -> None:
        """Sets the actions of an evaluation; ``is_new``: it is its step's first.

        ``skips``: DeepCache may skip a layer that should store, so what is stored stays.
        """
        self._actions = actions
        if actions.is_forecast:  # no layer runs
            return
        self.now.cross, self.now.self_ = actions.cross, actions.self_
        self.now.skips = skips
        if is_new and not skips and actions.self_ is not Action.REUSE:
            for layer in self.layers:
                if not layer.is_cross:
                    layer.caches.clear()

    def begin_call(
        self, rows: int, pictures: int | None, step: int, place: int, needed: Collection[int]
    ) -> None:
        """Starts a call with ``rows`` rows; ``pictures`` is the sample's rows, None if unknown.

        ``place`` is that of the evaluation in its step; ``needed`` are the steps whose outputs are
        still read after this one. Raises ValueError if the rows are neither one branch nor two, or
        if guidance starts late.
        """
        self.now.number, self.calls, self.rows = self.calls, self.calls + 1, rows
        self._step, self._place, self._needed = step, place, needed
        before = self.branches
        if not self.traits.branch_a_call:
            self._branch_out(self._branches_of(rows, pictures), step)
        if (before, self.branches) == (2, 1):
            self._drop_negative(2 * rows)
        in_rows = self.branches == 2 and not self.traits.branch_a_call
        self.now.mean = self._actions.mean and in_rows
        self._late_mean = self._actions.mean and not in_rows
        runs = self._substitute is None
        self._halves = in_rows and runs and not self._actions.guided
        if self._halves and self._doubled:
            self._doubled = False
            for layer in self.layers:
                layer.keep_positive()
        for layer in self.layers if runs and not self.now.skips else ():
            if self.action_of(layer) is Action.STORE:
                layer.caches.pop(self.now.number, None)

    @property
    def rows_run(self) -> int:
        """The number of rows that the module runs on in the current call; 0 if it is skipped."""
        if self._substitute is not None:
            return 0
        return self.rows // 2 if self._halves else self.rows

    def action_of(self, layer: GatedAttention) -> Action:
        """Returns what a layer does at the current step."""
        return self.now.cross if layer.is_cross else self.now.self_

    def check_stored(self, step: int) -> None:
        """Raises ValueError if the current call reuses attention that is not stored."""
        for layer in self.layers:
            if self.action_of(layer) is Action.REUSE and self.now.number not in layer.caches:
                raise ValueError(
                    f"step {step} would reuse attention that {type(self.module).__name__} has not "
                    "stored, because guidance or a ControlNet starts late. Fix: start it at the "
                    "first step"
                )

    def end_step(self, pictures: int, step: int) -> None:
        """Ends a step of ``pictures`` images, after which the number of branches is known.

        Raises ValueError as ``begin_call`` does.
        """
        by_call = self.traits.branch_a_call
        known = self.calls if by_call else self._branches_of(self.rows, pictures)
        self._branch_out(known, step)
        self._take_back()
        if self._late_mean:
            for layer in self.layers:
                layer.average(known or 1)
        if self._actions.difference is Action.STORE and known == 2 and self.leads:
            negative, positive = self._split()
            self._difference = _map(torch.sub, negative, positive)
        if not self._actions.is_forecast and Action.STORE in (self.now.cross, self.now.self_):
            whole = self._actions.guided and not self._actions.mean
            self._doubled = whole and known == 2 and not by_call
        self.calls = 0
        self._raw.clear()

    def forecast_next(self) -> None:
        """Keeps the module from running at the next evaluation, if outputs are stored."""
        if self._outputs:
            self._install(self._forecast)

    def _split(self) -> tuple[Any, Any]:
        """Returns this step's outputs of the branch that may be left out, and of the other."""
        if self.traits.branch_a_call:
            return self._raw[1], self._raw[0]
        halves = [_half(self._raw[0], self.rows, index) for index in (0, 1)]
        kept = self.traits.kept_branch
        return halves[1 - kept], halves[kept]

    def _drop_negative(self, rows: int) -> None:
        """Keeps the positive half of what is stored of ``rows`` rows: guidance has ended."""
        self._outputs = _half(self._outputs, rows, 1)
        if self._doubled:
            self._doubled = False
            for layer in self.layers:
                layer.keep_positive()

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
        """Reports the call to the pipeline call, then halves the inputs if one branch runs."""
        if module is not self.module:
            return None
        sample: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        self._entered(self, len(sample), args[1] if len(args) > 1 else kwargs.get("timestep"))
        if not self._halves:
            return None
        residuals = {name: kwargs[name] for name in _RESIDUALS if kwargs.get(name) is not None}
        repeats = self.traits.rows_per_frame
        args, kwargs = _half((args, kwargs), self.rows, self.traits.kept_branch, repeats)
        return args, kwargs | _half(residuals, self.rows, 1)

    @torch.compiler.disable
    def _after(self, module: torch.nn.Module, args: tuple, output: Any) -> Any:
        """Completes the output to that of both branches, stores it, and weighs the difference."""
        if module is not self.module:
            return None
        raw, now, number = output, self._actions, self.now.number
        if self._halves:
            other = output if self._difference_of(output) is None else self._other(output)
            order = (other, output) if self.traits.kept_branch else (output, other)
            raw = _map(lambda *halves: torch.cat(halves), *order)
        if self.leads or now.output is Action.STORE:
            self._raw[number] = raw
        if now.output is Action.STORE:
            stored = self._outputs.setdefault((self._place, number), {})
            stored[self._step] = raw
            for step in [step for step in stored if step not in self._needed]:
                del stored[step]
        self._left()
        alone = self.traits.branch_a_call and self.branches == 2 and not now.guided
        if alone and number == 0 and not now.is_forecast:  # a hook cannot keep it from running
            self._install(lambda: self._other(raw))
        given = raw if now.strength == 1 or not self.leads else self._weighed(raw, number)
        return None if given is output else given

    def _difference_of(self, output: Any) -> Any:
        reuses = self._actions.difference is Action.REUSE and self.leads
        return self._difference if reuses else None

    def _other(self, output: Any) -> Any:
        """Returns the output for the branch that did not run."""
        difference = self._difference_of(output)
        return output if difference is None else _map(torch.add, output, difference)

    def _weighed(self, raw: Any, number: int) -> Any:
        """Moves the negative output, so that the pipeline's scale acts as the step's weight.

        The positive one stays as it is, and with it what ``guidance_rescale`` reads of it.
        """
        by_call = self.traits.branch_a_call
        if (by_call and number == 0) or (not by_call and self.branches == 1):
            return raw

        def moved(negative: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
            return positive + self._actions.strength * (negative - positive)

        negative, positive = self._split()
        negative = _map(moved, negative, positive)
        if by_call:
            return negative
        return _map(lambda *halves: torch.cat(halves), negative, positive)

    def _forecast(self) -> Any:
        """Returns the weighted sum of stored outputs of this place in their steps."""
        stored = self._outputs[self._place, self.now.number]
        if not self.leads:  # the denoiser, which would read it, does not run either
            return stored[max(stored)]
        weights = [weight for _, weight in self._actions.sources]

        def combination(*outputs: torch.Tensor) -> torch.Tensor:
            wide = torch.promote_types(outputs[0].dtype, torch.float32)
            terms = (
                weight * output.to(wide) for weight, output in zip(weights, outputs, strict=True)
            )
            return sum(terms, torch.zeros((), dtype=wide, device=outputs[0].device)).to(
                outputs[0].dtype
            )

        return _map(combination, *(stored[step] for step, _ in self._actions.sources))

    def _install(self, substitute: Callable[[], Any]) -> None:
        """Lets ``substitute`` answer the module's calls until ``_take_back``."""
        self._substitute = substitute
        if not self._is_installed:
            self._is_installed = True
            self._own_forward = vars(self.module).get("forward")
            vars(self.module)["forward"] = self._given

    @torch.compiler.disable
    def _given(self, *args: Any, **kwargs: Any) -> Any:
        if self._substitute is None:  # another pipeline call began meanwhile
            return self.module.forward(*args, **kwargs)
        return self._substitute()

    def _take_back(self) -> None:
        self._substitute = None
        if self._is_installed:
            self._is_installed = False
            del vars(self.module)["forward"]
            if self._own_forward is not None:
                vars(self.module)["forward"] = self._own_forward
        self._own_forward = None


def _half(value: Any, batch: int, index: int, repeats: bool = False) -> Any:
    """``value`` with every tensor of ``batch`` rows cut to its half ``index`` (0 or 1).

    ``repeats``: rows may be repeated (a caption for each frame).
    """
    if isinstance(value, torch.Tensor):
        rows = value.shape[0] if value.ndim > 0 else 0
        if rows == batch or (repeats and rows and value.ndim > 1 and rows % batch == 0):
            return value[rows // 2 * index : rows // 2 * (index + 1)]
        return value
    if isinstance(value, dict):
        made = {
            key: item if key in _NOT_ROWS else _half(item, batch, index, repeats)
            for key, item in value.items()
        }
        return made if type(value) is dict else type(value)(**made)
    if isinstance(value, list | tuple):
        return type(value)(_half(item, batch, index, repeats) for item in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _map(function: Callable[..., Any], *values: Any) -> Any:
    """Applies ``function`` to the tensors at equal places of ``values``, which are built alike."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return function(*values)
    if isinstance(first, dict):
        parts = zip(first, *(value.values() for value in values), strict=True)
        return type(first)(**{key: _map(function, *items) for key, *items in parts})
    if isinstance(first, list | tuple):
        return type(first)(_map(function, *items) for items in zip(*values, strict=True))
    return first
