"""How a loaded pipeline computes: memory layout, fused projections, compilation, attention kernels.

None of it changes what is drawn beyond the last bits.
"""

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tgate_batch.config import Engine
from tgate_batch.errors import UserError
from tgate_batch.gate import denoiser_of
from tgate_batch.gate.layers import blocks

_CXX = "clang++" if sys.platform == "darwin" else "g++"
_COMPILERS = {"cpu": ("CXX", (_CXX,)), "cuda": ("CC", ("gcc", "clang"))}  # as torch looks
_GRAPHS = 64  # more than the arms of a run need


def prepare(pipeline: Any, engine: Engine) -> None:
    """Applies ``engine`` to the pipeline in place; raises UserError for what it cannot do."""
    import torch

    if not (engine.channels_last or engine.fused_qkv or engine.compile):
        return
    denoiser = denoiser_of(pipeline)
    if engine.channels_last:
        for part in filter(None, (denoiser, getattr(pipeline, "vae", None))):
            for module in part.modules():
                if isinstance(module, torch.nn.Conv2d):  # video has convolutions over time too
                    module.to(memory_format=torch.channels_last)
    if engine.fused_qkv:
        if not hasattr(denoiser, "fuse_qkv_projections"):
            raise UserError(
                f"engine.fused_qkv: {type(denoiser).__name__} has no projections to fuse; leave "
                "it out"
            )
        denoiser.fuse_qkv_projections()
    if engine.compile:
        check_compiler(engine, denoiser.device.type)
        # Each pair of actions is a graph of its own; past the limit torch would stop compiling.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
        parts = blocks(denoiser) if engine.compile == "regional" else [denoiser]
        for part in parts:
            part.compile(dynamic=False)


def check_compiler(engine: Engine, device: str) -> None:
    """Raises UserError where ``engine`` compiles and this machine has no C compiler for that."""
    variable, names = _COMPILERS.get(device, _COMPILERS["cpu"])
    wanted = tuple(shlex.split(os.environ.get(variable, "")))[:1] or names
    if engine.compile and not any(map(shutil.which, wanted)):
        raise UserError(
            f"engine.compile: torch.compile needs a C compiler, and {socket.gethostname()} has no "
            f"{' or '.join(wanted)}. Fix: install {names[0]}, or set engine.compile to false"
        )


@contextmanager
def attention(kernel: str | None) -> Iterator[None]:
    """Torch's scaled-dot-product attention restricted to one kernel inside the block."""
    if kernel is None:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }[kernel]
    with sdpa_kernel([backend, SDPBackend.MATH]):  # where a mask rules the kernel out, math
        yield
