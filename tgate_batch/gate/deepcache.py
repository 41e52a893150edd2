"""Runs the DeepCache helper around a gated denoiser."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from DeepCache import DeepCacheSDHelper

from tgate_batch.gate.plan import DeepCache


class CountedHelper(DeepCacheSDHelper):
    """DeepCache's helper with the call number given, instead of searched in the timesteps.

    The search finds the first of equal timesteps (PNDM, Heun) and synchronises the GPU each step.
    """

    def wrap_unet_forward(self) -> None:
        self.function_dict["unet_forward"] = self.pipe.unet.forward

    def wrap_block_forward(self, block: Any, *place: Any, **kind: Any) -> None:
        if block is not None:  # a U-Net may have no middle
            super().wrap_block_forward(block, *place, **kind)

    def at_call(self, call: int, full: bool) -> None:
        """Prepares denoiser call ``call``; ``full`` computes all blocks and starts a new cycle."""
        self.cur_timestep = call
        if full:
            self.start_timestep = call
            self.cached_output.clear()


@contextmanager
def enabled(pipe: Any, setting: DeepCache) -> Iterator[CountedHelper]:
    """Wraps the U-Net's blocks inside the ``with`` block.

    Raises ValueError if there is no U-Net, or if it has no such branch.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise ValueError(
            f"DeepCache skips blocks of a U-Net, but {type(pipe).__name__} has none. Fix: leave "
            "`deepcache` out"
        )
    branches = 3 * len(unet.down_blocks)  # the helper counts three to a block
    if setting.branch >= branches:
        raise ValueError(
            f"branch={setting.branch} is deeper than this {type(unet).__name__}, so almost no "
            f"block would be skipped. Fix: use 0 (the shallowest) to {branches - 1}"
        )
    forwards = {module: vars(module).get("forward") for module in unet.modules()}
    helper = CountedHelper(pipe=pipe)
    helper.set_params(cache_interval=setting.interval, cache_branch_id=setting.branch)
    try:
        helper.enable()
        yield helper
    finally:
        # Not `disable()`: it leaves `forward` behind on every module, bound, and fails half-way.
        for module, forward in forwards.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward
        helper.reset_states()
