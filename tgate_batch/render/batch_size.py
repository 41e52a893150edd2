"""Out of memory: how large the next batch may be."""

import re
from typing import Any


class BatchSizeController:
    """How large a batch may be: halved where memory runs out, then the VAE in slices.

    After ``PATIENCE`` batches that fitted it climbs one rung. Where that was too early, it waits
    twice as long the next time.
    """

    PATIENCE = 8

    def __init__(self, asked: int, vae: Any):
        self.size = asked
        self._asked = asked
        self._vae = vae
        self._slices = False
        self._patience, self._fitted = self.PATIENCE, 0
        self._climbed = False

    @property
    def state(self) -> str | None:
        """What a row says of its batch; None where nothing had to be cut."""
        if self.size == self._asked and not self._slices:
            return None
        return f"batch of {self.size}, not {self._asked}" + (
            ", VAE in slices" if self._slices else ""
        )

    def restore(self, rung: str | None) -> None:
        """Stands where a row says that its batch was drawn; None: where it began."""
        match = re.match(r"batch of (\d+), not \d+(, VAE in slices)?", rung or "")
        self.size = int(match[1]) if match else self._asked
        slices = bool(match and match[2])
        if slices != self._slices:
            (self._vae.enable_slicing if slices else self._vae.disable_slicing)()
        self._slices = slices

    def shrink(self, size: int) -> bool:
        """After a batch of ``size`` did not fit; False where nothing is left to give up."""
        if self._climbed:
            self._patience *= 2
        self._climbed, self._fitted = False, 0
        if size > 1:
            self.size = size // 2
        elif not getattr(self._vae, "use_slicing", True):
            self._vae.enable_slicing()
            self._slices = True
        else:
            return False
        return True

    def grow(self) -> None:
        """After a batch that fitted."""
        self._fitted += 1
        if self.state is None or self._fitted < self._patience:
            return
        self._climbed, self._fitted = True, 0
        if self._slices:
            self._vae.disable_slicing()
            self._slices = False
        else:
            self.size = min(2 * self.size, self._asked)
