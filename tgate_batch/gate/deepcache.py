"""The DeepCache helper around a gated denoiser."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from DeepCache import DeepCacheSDHelper

from tgate_batch.gate.plan import DeepCache


class CountedHelper(DeepCacheSDHelper):
    """The helper, told which call it is instead of searching the timesteps for it.

    The search meets the first of equal timesteps (PNDM, Heun) and waits for the GPU at every step.
    """

    def wrap_unet_forward(self) -> None:
        self.function_dict["unet_forward"] = self.pipe.unet.forward

    def wrap_block_forward(self, block: Any, *place: Any, **kind: Any) -> None:
        if block is not None:  # a U-Net may have no middle
            super().wrap_block_forward(block, *place, **kind)

    def at_call(self, call: int, full: bool) -> None:
        """Denoiser call number ``call`` comes next; ``full``: computed whole, a new cycle."""
        self.cur_timestep = call
        if full:
            self.start_timestep = call
            self.cached_output.clear()


@contextmanager
def enabled(pipe: Any, setting: DeepCache) -> Iterator[CountedHelper]:
    """Wraps the U-Net's blocks for the length of the block.

    Raises ValueError without a U-Net, and for a branch that it does not have.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise ValueError(
            f"DeepCache skips blocks of a U-Net, and {type(pipe).__name__} has none; leave "
            "`deepcache` out"
        )
    branches = 3 * len(unet.down_blocks)  # the helper counts three to a block
    if setting.branch >= branches:
        raise ValueError(
            f"branch={setting.branch} is deeper than this {type(unet).__name__}, so next to no "
            f"block would be skipped; use 0 (the shallowest) to {branches - 1}"
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
