"""Wrappers that make attention layers, and the norms before them, compute, store or reuse."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention

from tgate_batch.gate.table import Action

_IN_CHUNKS = (
    "an attention layer is called several times in one call of the denoiser, so no output can be "
    "stored. Fix: run the pipeline without splitting its inference (for example, without "
    "enable_free_noise_split_inference) or without the gate"
)


class CurrentActions:
    """The actions of one module's attention layers at the current step; the layers only read it.

    ``mean``: a store keeps the mean of the two branches. ``number``: the module's call within
    this evaluation, from 0; each call has separate stored outputs. ``skips``: DeepCache may skip
    layers, so that an earlier output may still be stored when a layer stores.
    """

    def __init__(self) -> None:
        self.cross = self.self_ = Action.COMPUTE
        self.mean = self.skips = False
        self.number = 0

    def __deepcopy__(self, memo: dict) -> "CurrentActions":
        """A copied pipeline is not gated: its layers always compute."""
        return CurrentActions()


class PatchedForward(ABC):
    """Replaces ``forward`` of one module until ``give_back`` restores it."""

    def __init__(self, module: Any, current: CurrentActions) -> None:
        self.module = module
        self.current = current
        self.before = vars(module).get("forward")  # another hook's
        module.forward = self.forward

    def restore(self) -> None:
        self.current = CurrentActions()
        # A later wrapper may still call this one, which now only calls the original.
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
        """Runs instead of the module's ``forward``."""


class GatedAttention(PatchedForward):
    """Computes, stores or reuses one attention layer's output, according to ``current``.

    ``caches`` maps the number of the call that stored an output to the output. ``is_cross`` is True
    if the layer's last call was cross-attention (its keys came from another input).
    """

    def __init__(self, module: Any, current: CurrentActions, is_cross: bool) -> None:
        super().__init__(module, current)
        self.is_cross = is_cross
        self.caches: dict[int, torch.Tensor] = {}
        # The module uses diffusers' own `Attention.forward`, unpatched.
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
        # `Attention.forward` inspects the processor's signature, which costs as much as the
        # attention of a small image; without further arguments it is not needed.
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
            if self.current.number in self.caches and not self.current.skips:
                raise ValueError(_IN_CHUNKS)
            self.caches[self.current.number] = mean(output) if self.current.mean else output
        return output

    def average(self, branches: int) -> None:
        """Replaces the cached outputs by their mean over the branches."""
        if len(self.caches) > 1:
            self.caches = {0: torch.stack(list(self.caches.values())).mean(0)}
        elif self.caches and branches == 2:
            self.caches = {number: mean(cache) for number, cache in self.caches.items()}

    def keep_positive(self) -> None:
        """Keeps only the positive half of each cached tensor."""
        self.caches = {number: cache.chunk(2)[1] for number, cache in self.caches.items()}


class SkippableNorm(PatchedForward):
    """Skips a norm that only feeds an attention layer which reuses its stored output."""

    def __init__(self, module: Any, attention: GatedAttention) -> None:
        super().__init__(module, attention.current)
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.attention.action is Action.REUSE:
            return hidden_states
        return self.original(hidden_states, *args, **kwargs)


def mean(output: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the two halves of a batch."""
    negative, positive = output.chunk(2)
    return (negative + positive) / 2


def attach(
    module: torch.nn.Module, current: CurrentActions, stack: ExitStack
) -> list[GatedAttention]:
    """Wraps both attention layers of every cross-attention block until ``stack`` closes.

    They follow ``current``. Raises ValueError if there is no such block, and for a patched block,
    because its layers' input may be reordered at each step.
    """
    gated_layers: list[GatedAttention] = []
    for block in blocks(module):
        layers = {}
        for name in ("attn1", "attn2"):
            layer = getattr(block, name)
            layers[name] = GatedAttention(layer, current, layer.is_cross_attention)
            stack.callback(layers[name].restore)
        for norm, name in _norms(block):
            stack.callback(SkippableNorm(getattr(block, norm), layers[name]).restore)
        gated_layers += layers.values()
    if not gated_layers:
        raise ValueError(
            f"this {type(module).__name__} has no separate cross-attention (its attention layers "
            "process caption and image together), so nothing can be gated. Fix: run this pipeline "
            "without the gate"
        )
    return gated_layers


def blocks(module: torch.nn.Module) -> Iterator[Any]:
    """Yields the transformer blocks with cross-attention; raises ValueError for a patched one."""
    for block in module.modules():
        cross = getattr(block, "attn2", None)
        if cross is None or not getattr(cross, "is_cross_attention", False):
            continue
        kind = _own_kind(block)
        if kind not in _NORMS:
            raise ValueError(
                f"the blocks of this {type(module).__name__} have the forward of {kind}, with "
                "which stored attention may not fit the next step. Fix: remove that patch (for "
                "example, tomesd.remove_patch) or leave the gate out"
            )
        yield block


def _own_kind(block: Any) -> str:
    """Returns the name of the class that defines a block's ``forward``."""
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
