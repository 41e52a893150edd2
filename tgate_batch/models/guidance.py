"""Guidance scales per row of a batch."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch


class RowScales(float):
    """A guidance scale for each row of a batch: ``scale * tensor`` scales each row by its own.

    Pipelines that only compare a scale and multiply tensors by it take it for a number; compared,
    it is the largest. Rows get the bits that a batch of one scale gives them. Any other arithmetic
    raises TypeError, since it could not be right for every row.
    """

    def __new__(cls, scales: Sequence[float]) -> "RowScales":
        made = super().__new__(cls, max(scales))
        made._scales = torch.tensor(scales, dtype=torch.float64)
        return made

    _scales: torch.Tensor  # [rows]

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, torch.Tensor) or other.ndim == 0:
            self._refuse()
        if len(other) != len(self._scales):
            raise ValueError(f"{len(self._scales)} guidance scales for a batch of {len(other)}")
        # As torch multiplies by a number: in float32 at least, then rounded once.
        wide = torch.promote_types(other.dtype, torch.float32)
        scales = self._scales.to(other.device, wide).view(-1, *[1] * (other.ndim - 1))
        return (other.to(wide) * scales).to(other.dtype)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Handles ``tensor * scale``, with the tensor on the left."""
        if function in (torch.Tensor.mul, torch.Tensor.__mul__, torch.mul) and not kwargs:
            tensor, scale = args
            return scale * tensor
        cls._refuse()

    @classmethod
    def _refuse(cls, *_: Any) -> NoReturn:
        raise TypeError("rows of differing guidance cannot share a batch of this pipeline")

    __rmul__ = __mul__
    __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __neg__ = _refuse


def scale_of(scales: Sequence[float]) -> float:
    """The scale of a batch whose rows have these: a plain number where they are equal."""
    return scales[0] if len(set(scales)) == 1 else RowScales(scales)
