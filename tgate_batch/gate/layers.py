"""Attention layers, and the norms that feed them, made to compute, store or reuse."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from tgate_batch.gate.plan import Action


class CurrentActions:
    """What the attention layers of one module do at the step that runs now; they only read it.

    ``mean``: a store keeps the mean of the two branches. ``number``: the module's call within
    this evaluation, from 0; each keeps outputs of its own.
    """

    def __init__(self) -> None:
        self.cross = self.self_ = Action.COMPUTE
        self.mean = False
        self.number = 0

    def __deepcopy__(self, memo: dict) -> "CurrentActions":
        """A copied pipeline is no gated one: its layers always compute."""
        return CurrentActions()


class Replaced(ABC):
    """``forward`` of one module, replaced by this object's own until it is given back."""

    def __init__(self, module: Any, current: CurrentActions) -> None:
        self.module = module
        self.current = current
        self.before = vars(module).get("forward")  # another hook's
        module.forward = self.forward

    def give_back(self) -> None:
        self.current = CurrentActions()
        # What came on top of it since then holds it for the original, which it now acts as.
        if vars(self.module).get("forward") == self.forward:
            del self.module.forward
            if self.before is not None:
                self.module.forward = self.before

    def original(self, *args: Any, **kwargs: Any) -> Any:
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module does instead."""


class GatedAttention(Replaced):
    """Computes, stores or reuses one attention layer's output, as ``current`` says.

    ``caches`` holds the output by the number of the call that stored it. ``is_cross`` is what the
    layer was at its last call: given something to attend to that is not its own input.
    """

    def __init__(self, module: Any, current: CurrentActions, is_cross: bool) -> None:
        super().__init__(module, current)
        self.is_cross = is_cross
        self.caches: dict[int, torch.Tensor] = {}
        # Neither a subclass nor another hook has a say.
        self.is_bare = self.before is None and type(module).forward is Attention.forward

    @property
    def action(self) -> Action:
        action = self.current.cross if self.is_cross else self.current.self_
        # DeepCache may have skipped the layer when it should have stored.
        absent = action is Action.REUSE and self.current.number not in self.caches
        return Action.COMPUTE if absent else action

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        is_cross = encoder_hidden_states is not None and encoder_hidden_states is not hidden_states
        if is_cross is not self.is_cross:
            self.is_cross = is_cross
        action = self.action
        if action is Action.REUSE:
            return self.caches[self.current.number]
        # The layer's own forward would look up what its processor takes, which costs as much as
        # the attention of a small picture; with nothing further to pass on it is not needed.
        own: Any = self.original
        if self.is_bare and not args and not kwargs:
            own = partial(self.module.processor, self.module)
            output = own(
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
            )
        else:
            output = own(hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        if action is Action.STORE:
            self.caches[self.current.number] = mean(output) if self.current.mean else output
        return output

    def average(self, branches: int) -> None:
        """Leaves of what was stored the mean of the branches: rows of one call, or its calls."""
        if len(self.caches) > 1:
            self.caches = {0: torch.stack(list(self.caches.values())).mean(0)}
        elif self.caches and branches == 2:
            self.caches = {number: mean(cache) for number, cache in self.caches.items()}

    def keep_positive(self) -> None:
        """Leaves of what was stored the half of the positive branch."""
        self.caches = {number: cache.chunk(2)[1] for number, cache in self.caches.items()}


class SkippedNorm(Replaced):
    """Leaves out a norm whose only reader is an attention layer that reuses its output."""

    def __init__(self, module: Any, attention: GatedAttention) -> None:
        super().__init__(module, attention.current)
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.attention.action is Action.REUSE:
            return hidden_states
        return self.original(hidden_states, *args, **kwargs)


def mean(output: torch.Tensor) -> torch.Tensor:
    """The mean of the two halves of a batch."""
    negative, positive = output.chunk(2)
    return (negative + positive) / 2


def attach(
    module: torch.nn.Module, current: CurrentActions, stack: ExitStack
) -> list[GatedAttention]:
    """Both attention layers of every block that attends to a caption follow ``current``.

    They do until ``stack`` closes. Raises ValueError where no block does, and for one that does
    more than diffusers' own, since then its layers' input may come in another order at each step.
    """
    found: list[GatedAttention] = []
    for block in blocks(module):
        layers = {}
        for name in ("attn1", "attn2"):
            layer = getattr(block, name)
            layers[name] = GatedAttention(layer, current, layer.is_cross_attention)
            stack.callback(layers[name].give_back)
        for norm, name in _norms(block):
            stack.callback(SkippedNorm(getattr(block, norm), layers[name]).give_back)
        found += layers.values()
    if not found:
        raise ValueError(
            f"this {type(module).__name__} has no blocks with cross-attention of their own (its "
            "attention layers see caption and picture together), so nothing can be gated"
        )
    return found


def blocks(module: torch.nn.Module) -> Iterator[Any]:
    """The transformer blocks that own cross-attention; raises ValueError for a patched one."""
    for block in module.modules():
        cross = getattr(block, "attn2", None)
        if cross is None or not getattr(cross, "is_cross_attention", False):
            continue
        kind = _own_kind(block)
        if kind not in _NORMS:
            raise ValueError(
                f"the blocks of this {type(module).__name__} have the forward of {kind}, under "
                "which stored attention may not fit the next step; remove that patch (for "
                "example, tomesd.remove_patch) or leave the gate out"
            )
        yield block


def _own_kind(block: Any) -> str:
    """The name of the class that a block's ``forward`` comes from."""
    return next(kind.__name__ for kind in type(block).__mro__ if "forward" in vars(kind))


# Norms that one attention layer alone reads, by block (diffusers, models/attention.py and
# models/transformers/): not Sana's norm2, which feeds the feed-forward part.
_NORMS = {
    "BasicTransformerBlock": (),
    "TemporalBasicTransformerBlock": (("norm1", "attn1"), ("norm2", "attn2")),
    "SanaTransformerBlock": (("norm1", "attn1"),),
    "WanTransformerBlock": (("norm1", "attn1"), ("norm2", "attn2")),
}


def _norms(block: Any) -> tuple[tuple[str, str], ...]:
    if _own_kind(block) != "BasicTransformerBlock":
        return _NORMS[_own_kind(block)]
    if block.norm_type in ("layer_norm", "layer_norm_i2vgen"):
        return ("norm1", "attn1"), ("norm2", "attn2")
    return (("norm1", "attn1"),) if block.norm_type == "ada_norm_single" else ()
