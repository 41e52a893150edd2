"""What a call computes, by kind of operation, and how fast a gated one could be at most.

MACs alone overrate what a plan can gain: a multiply-accumulate of a convolution takes another time
than one of attention, and much of a call (norms, activations, copies) has none. So the work of each
kind is weighted by the time it takes in the *ungated* call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

KINDS = ("convolution", "matrix product", "attention", "other")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul")


def kind_of(operation: str) -> str:
    """The kind of an operation, by its name in torch (``aten::addmm``)."""
    name = operation.rpartition("::")[2].rpartition(".")[2]
    if "attention" in name:
        return "attention"
    if "conv" in name:
        return "convolution"
    if name in _PRODUCTS or "linear" in name or name == "_scaled_mm":
        return "matrix product"
    return "other"


class Work(TorchDispatchMode):
    """Counts what runs inside the block, by kind: floating-point operations of products, and of
    everything else the numbers that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = operation(*args, **kwargs or {})
        counted = flop_registry.get(operation.overloadpacket)
        if counted is not None:
            kind = kind_of(str(operation.overloadpacket))
            self.done[kind] += counted(*args, **kwargs or {}, out_val=output)
        elif not operation.is_view:
            tensors = output if isinstance(output, list | tuple) else [output]
            written = (each.numel() for each in tensors if isinstance(each, torch.Tensor))
            self.done["other"] += sum(written)
        return output


def work_of(call: Callable[[], Any]) -> dict[str, int]:
    """The work of a call, by kind; a compiled module is counted as it is uncompiled."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), Work() as work:
        call()
    return {kind: work.done[kind] for kind in KINDS}


def products(work: Mapping[str, float]) -> float:
    """All floating-point operations of products."""
    return sum(amount for kind, amount in work.items() if kind != "other")


def profiled(call: Callable[[], Any]) -> dict[str, Any]:
    """Where a call's time goes: ``seconds`` by kind, and ``most``, the longest (name, seconds).

    On a GPU it is the time of its kernels, on a CPU that of torch's operations.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as measured:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    return by_kind(measured.key_averages(), on_gpu)


def by_kind(events: Iterable[Any], on_gpu: bool) -> dict[str, Any]:
    """What ``profiled`` returns, from the profiler's averages."""
    seconds, longest = dict.fromkeys(KINDS, 0.0), Counter[str]()
    total = 0.0
    for event in events:
        # Kernels have rows of their own, and their time is the operation's too that asked for them.
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel and event.is_user_annotation:  # a span over kernels, as of a compiled region
            continue
        own = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        if is_kernel or not on_gpu:
            total += own
            longest[event.key] += own
        if not is_kernel and (kind := kind_of(event.key)) != "other":
            seconds[kind] += own
    seconds["other"] = max(total - sum(seconds.values()), 0.0)
    return {
        "seconds": seconds,
        "most": [[name[:100], round(own, 6)] for name, own in longest.most_common(12)],
    }


def limit(
    work: Mapping[str, float], baseline: Mapping[str, float], seconds: Mapping[str, float]
) -> float:
    """The speed-up of a call whose every kind of work takes what it takes in the baseline.

    ``work`` and ``baseline`` are the two calls' by kind, ``seconds`` the baseline's time by kind.
    """
    taken = sum(
        spent * work[kind] / baseline[kind] if baseline[kind] else spent
        for kind, spent in seconds.items()
    )
    return sum(seconds.values()) / taken
