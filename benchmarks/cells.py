"""The cells of the GPU table, those that matter most first, and the file that keeps them."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from tgate_batch.config import Engine
from tgate_batch.errors import UserError

What = Literal["work", "arms", "profile", "bits", "decode", "job"]
_REGIONAL = {"compile": "regional"}
_WHOLE = {"compile": True}


@dataclass(frozen=True)
class Cell:
    """One measurement: what is measured, of which model, in how many steps, how computed.

    - ``work``: what each arm computes, by kind of operation.
    - ``arms``: their speed beside the baseline's, memory, energy.
    - ``profile``: where the time of each goes.
    - ``bits``: whether a picture is the same wherever it stands in a batch.
    - ``decode``: the VAE by itself, and beside the next batch.
    - ``job``: the whole job beside a bare loop, by MLPerf's rules for SDXL.
    """

    what: What
    model: str
    steps: int
    batch: int
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        engine = [f"{key} {value}" for key, value in self.engine.items()]
        return ", ".join([self.what, self.model, f"{self.steps} steps", f"{self.batch}", *engine])

    @property
    def settings(self) -> Engine:
        return Engine(**self.engine)


@dataclass(frozen=True)
class Size:
    """How large the models and the batches are: ``full`` for a GPU, ``small`` for a CPU."""

    mid_size: bool
    models: tuple[str, ...]
    side: int | None  # pixels; None: the model's own
    steps: tuple[int, int]
    profiled: int  # steps of bits, which more would not change, and of profiles, long to read
    batches: tuple[int, ...]  # the first one is that of the cells that matter most
    kernels: tuple[str, ...]

    def cells(self) -> list[Cell]:
        """Every cell once, in the order in which they are measured."""
        return list({str(cell): cell for cell in self._all()}.values())

    def _all(self) -> Iterator[Cell]:
        many, (few, usual) = self.batches[0], self.steps
        sdxl, pixart, _ = self.models
        for model, engine in product((sdxl, pixart), ({}, _REGIONAL)):
            yield Cell("arms", model, usual, many, engine)
            yield Cell("bits", model, self.profiled, many, engine)
            yield Cell("profile", model, self.profiled, many, engine)
        yield Cell("job", sdxl, few, many, _REGIONAL)
        yield Cell("decode", sdxl, usual, many)
        for model, batch, engine in product(self.models, self.batches, ({}, _REGIONAL)):
            yield Cell("arms", model, usual, batch, engine)
        kernels: list[dict[str, Any]] = [{"attention": kernel} for kernel in self.kernels]
        others = [{"channels_last": False}, {"fused_qkv": True}, *kernels, _WHOLE]
        for engine, model in product(others, self.models):
            yield Cell("arms", model, usual, many, engine)
        for model, engine in product(self.models, ({}, _REGIONAL)):
            yield Cell("arms", model, few, many, engine)
        for model, batch in product(self.models, self.batches):
            yield Cell("decode", model, usual, batch)


SIZES = {
    "full": Size(
        mid_size=False,
        models=("sdxl", "pixart_sigma", "sd15"),
        side=None,
        steps=(20, 25),
        profiled=10,
        batches=(8, 1, 4, 16),
        kernels=("flash", "efficient", "cudnn"),
    ),
    "small": Size(
        mid_size=True,
        models=("sdxl", "pixart_sigma", "sd15"),
        side=128,
        steps=(4, 5),
        profiled=5,
        batches=(2, 1),
        kernels=("flash", "math"),
    ),
}


class Kept:
    """What was measured on one device, a line of JSON a cell; lines of other devices stay."""

    def __init__(self, file: Path, device: str) -> None:
        self._file = file
        self._device = device
        self.cells: dict[str, dict[str, Any]] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.open("a").close()
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}") from None
        for number, line in enumerate(_lines(file), 1):
            try:
                said = json.loads(line)
                if said["device"] == device:
                    self.cells[said["cell"]] = said["measured"]
            except (ValueError, TypeError, KeyError):
                raise UserError(
                    f"{file}: line {number} is no measured cell; remove the line, or give another "
                    "file"
                ) from None

    def keep(self, cell: Cell, measured: dict[str, Any]) -> None:
        """Adds a cell to the file; it is on the disk when this returns."""
        self.cells[str(cell)] = measured
        said = {"device": self._device, "cell": str(cell), "measured": measured}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _lines(file: Path) -> list[str]:
    """The file's whole lines; a last one that was cut off is taken out of it."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return whole.splitlines()
