"""What the gate did in a pipeline call."""

from dataclasses import dataclass, field


@dataclass
class Summary:
    """Counts of the last pipeline call in a block; partial if the call was interrupted.

    ``steps`` begun; ``rows`` that the denoiser ran on, call by call; attention layers that by the
    plan were ``computed`` (of these, ``stored`` were kept too) and ``reused``, all calls together,
    a ControlNet's too; ``peak_bytes`` of stored output.
    """

    steps: int = 0
    rows: list[int] = field(default_factory=list)
    computed: int = 0
    stored: int = 0
    reused: int = 0
    peak_bytes: int = 0

    def clear(self) -> None:
        """Resets all counts for a new pipeline call."""
        vars(self).update(vars(Summary()))
