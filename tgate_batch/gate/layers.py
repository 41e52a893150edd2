"""Hooks on a denoiser's attention layers, and on the norms that feed them."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
from diffusers.models.attention_processor import Attention

from tgate_batch.gate.plan import Action

_NAME = "tgate"


@dataclass(eq=False)
class CurrentActions:
    """What all attention layers do at the step that runs now; they read it and never write it.

    ``mean``: a store keeps the mean of the two branches.
    """

    cross: Action = Action.COMPUTE
    self_: Action = Action.COMPUTE
    mean: bool = False


class GatedAttention(ModelHook):
    """Computes, stores or reuses one attention layer's output, as ``current`` says."""

    def __init__(self, current: CurrentActions, is_cross: bool) -> None:
        super().__init__()
        self.current = current
        self.is_cross = is_cross
        self.cache: torch.Tensor | None = None

    @property
    def action(self) -> Action:
        action = self.current.cross if self.is_cross else self.current.self_
        # Under DeepCache a layer may be skipped whenever it should have stored.
        return Action.COMPUTE if action is Action.REUSE and self.cache is None else action

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        own = type(module).forward is Attention.forward and "forward" not in vars(module)
        self.is_bare = own  # neither a subclass nor another hook has a say
        return module

    def new_forward(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        action = self.action
        if action is Action.REUSE:
            return self.cache
        # The layer's own forward would look up what its processor takes, which costs as much as
        # the attention of a small picture; with nothing further to pass on it is not needed.
        forward: Any = self.fn_ref.original_forward
        if self.is_bare and not kwargs:
            forward = partial(module.processor, module)
        output = forward(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )
        if action is Action.STORE:
            self.cache = output
            if self.current.mean:
                negative, positive = output.chunk(2)
                self.cache = (negative + positive) / 2
        return output


class SkippedNorm(ModelHook):
    """Leaves out a norm whose only reader is an attention layer that reuses its output."""

    def __init__(self, attention: GatedAttention) -> None:
        super().__init__()
        self.attention = attention

    def new_forward(
        self, module: torch.nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if self.attention.action is Action.REUSE:
            return hidden_states
        forward: Any = self.fn_ref.original_forward
        return forward(hidden_states, *args, **kwargs)


def attach(
    denoiser: torch.nn.Module, current: CurrentActions, stack: ExitStack
) -> list[GatedAttention]:
    """Hooks every attention layer, which then follows ``current``, until ``stack`` closes.

    Raises ValueError for a denoiser that has no cross-attention layers of its own.
    """
    hooks = {}
    for layer in _gateable(denoiser):
        hooks[layer] = GatedAttention(current, layer.is_cross_attention)
        _hook(layer, hooks[layer], stack)
    for norm, layer in _norms(denoiser):
        if layer in hooks:
            _hook(norm, SkippedNorm(hooks[layer]), stack)
    return list(hooks.values())


def _gateable(denoiser: torch.nn.Module) -> list[Attention]:
    layers = [module for module in denoiser.modules() if isinstance(module, Attention)]
    cross = [
        layer for layer in layers if layer.is_cross_attention and not layer.residual_connection
    ]
    if not cross or any(layer.added_kv_proj_dim is not None for layer in layers):
        raise ValueError(
            f"{type(denoiser).__name__} has no cross-attention layers of its own (text and picture "
            "attend jointly), and T-GATE gates those; use Stable Diffusion 1.5, 2.1 or XL, PixArt, "
            "or Stable Video Diffusion"
        )
    # With the residual inside, the output depends on this step's input and cannot be reused.
    return [layer for layer in layers if not layer.residual_connection]


def _norms(denoiser: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, Attention]]:
    """Norms with the attention layer that alone reads them (diffusers, models/attention.py)."""
    for block in denoiser.modules():
        if isinstance(block, TemporalBasicTransformerBlock):
            kind = "layer_norm"
        elif isinstance(block, BasicTransformerBlock):
            kind = block.norm_type
        else:
            continue
        if kind in ("layer_norm", "layer_norm_i2vgen", "ada_norm_single"):
            yield block.norm1, block.attn1
        if kind in ("layer_norm", "layer_norm_i2vgen") and block.attn2 is not None:
            yield block.norm2, block.attn2


def _hook(module: Any, hook: ModelHook, stack: ExitStack) -> None:
    # Not `check_if_exists_or_initialize`: a module takes its time to say what it does not have.
    if "_diffusers_hook" not in vars(module):
        module._diffusers_hook = HookRegistry(module)
    module._diffusers_hook.register_hook(hook, _NAME)
    stack.callback(_unhook, module)


def _unhook(module: Any) -> None:
    registry = module._diffusers_hook
    registry.remove_hook(_NAME, recurse=False)
    if not registry.hooks:
        del module._diffusers_hook
        # The registry puts the bound original back; without it the class's own is found again.
        if getattr(module.forward, "__func__", None) is type(module).forward:
            del module.forward
