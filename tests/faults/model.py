"""Faults of a model that is none of ours to paint: the config's own, of a few steps.

A batch that was cut or drawn again moves a picture in its last bits: by a level of 255 at most.
"""

from pathlib import Path

from injected import Round, each_seventh_raises, out_of_memory_above_a_size
from painter import OwnModel
from world import World


def world_of_a_model(place: Path) -> World:
    gated = {"gate_step": 1}
    return World(place, OwnModel.opened, levels=1, sampling={"steps": 2}, arms={"same": gated})


ROUNDS: dict[str, tuple[Round, int]] = {
    "a model: out of memory above a size": (out_of_memory_above_a_size, 4),
    "a model: each 7th picture raises": (each_seventh_raises, 2),
}
