"""MACs of one call of a module, in both conventions: the one place that knows calflops."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import calflops
import torch
from calflops import calculate_pipline, pytorch_ops
from torch.utils.flop_counter import FlopCounterMode


class Count(NamedTuple):
    """MACs in the published convention, and with attention products."""

    macs: int = 0
    macs_with_attention: int = 0

    def plus(self, other: "Count") -> "Count":
        return Count(self.macs + other.macs, self.macs_with_attention + other.macs_with_attention)


class _Body(torch.nn.Module):
    """A call as a module without arguments: calflops takes flat tensors only."""

    def __init__(self, module: torch.nn.Module, call: Any):
        super().__init__()
        self.parts = torch.nn.ModuleList(module.children())
        self._call = call

    def forward(self, _: torch.Tensor) -> None:
        self._call()


def count_call(
    module: torch.nn.Module, forward: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[Count, Any]:
    """Counts one call of ``forward`` of ``module`` in both conventions; returns its output too.

    Arguments and weights may be on the meta device.
    """
    outputs = []
    device = next((each.device for each in module.parameters()), torch.device("meta"))
    body = _Body(module, lambda: outputs.append(forward(*args, **kwargs)))
    with (
        torch.no_grad(),
        _without_gradients(module),
        _restored_functions(),
        FlopCounterMode(display=False) as everything,
    ):
        _, linear_and_conv, _ = calflops.calculate_flops(
            body,
            kwargs={"_": torch.empty(1, device=device)},
            print_results=False,
            output_as_string=False,
        )
    return Count(int(linear_and_conv), everything.get_total_flops() // 2), outputs[0]


@contextlib.contextmanager
def _without_gradients(module: torch.nn.Module) -> Iterator[None]:
    """Lets no weight require a gradient: the counter hooks every such argument of a layer."""
    weights = [each for each in module.parameters() if each.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextlib.contextmanager
def _restored_functions() -> Iterator[None]:
    """Undoes calflops' patches, which outlive an exception and would count twice afterwards."""
    places = (torch, torch.nn.functional, torch.Tensor)
    before = [dict(vars(place)) for place in places]
    upsample = pytorch_ops._upsample_flops_compute
    pytorch_ops._upsample_flops_compute = _none  # it fails where each side has a factor of its own
    try:
        yield
    finally:
        pytorch_ops._upsample_flops_compute = upsample
        for place, names in zip(places, before, strict=True):
            for name in set(vars(place)) - set(names):
                delattr(place, name)
            for name, value in names.items():
                if vars(place)[name] is not value:
                    setattr(place, name, value)
        calculate_pipline.module_flop_count.clear()
        calculate_pipline.module_mac_count.clear()


def _none(*args: Any, **kwargs: Any) -> tuple[int, int]:
    """(FLOPs, MACs) of upsampling, in which calflops sees no MACs either."""
    return 0, 0
