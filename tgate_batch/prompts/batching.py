"""Cuts a prompt set into shards by batch key, so that batches stay full.

Rows with different sizes, numbers of steps or uses of guidance cannot share a batch. A shard has
rows of one batch key, in the set's order, and each row has its position in the set.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tgate_batch.prompts.reader import next_size
from tgate_batch.records import AS_OTHERS, AS_THE_RUN, BatchKey, Prompt, Shard


@dataclass
class _Part:
    """A shard that is being filled; ``index``: None for a new shard until it is full."""

    index: int | None
    size: int
    prompts: list[Prompt] = field(default_factory=list)


def cut_shards(
    prompts: Iterable[Prompt],
    planned: Sequence[tuple[BatchKey, int]],
    joining: int,
    largest: int,
    batch: int,
    apart: bool,
) -> Iterator[tuple[BatchKey, Shard]]:
    """Fills the planned shards (batch key, size), then cuts ``joining`` more prompts.

    Yields each shard once it is full; planned shards keep their index, new ones are numbered in
    completion order. Partly filled shards come last. New shards get smaller towards the end, in
    whole batches of ``batch`` prompts. ``apart`` as in ``RowSettings.batch_key``. Keeps one shard
    of every batch key in memory.
    """
    waiting: dict[BatchKey, deque[tuple[int, int]]] = defaultdict(deque)
    for index, (key, size) in enumerate(planned):
        waiting[key].append((index, size))
    filling: dict[BatchKey, _Part] = {}
    left, number = joining, len(planned)
    for prompt in prompts:
        key = AS_OTHERS if prompt.overrides is AS_THE_RUN else prompt.overrides.batch_key(apart)
        part = filling.get(key)
        if part is None:
            if waiting[key]:
                part = _Part(*waiting[key].popleft())
            else:
                size = next_size(left, joining, largest, batch) if left > 0 else largest
                part = _Part(None, size)
            filling[key] = part
        part.prompts.append(prompt)
        if len(part.prompts) == part.size:
            del filling[key]
            if part.index is None:
                left -= part.size
                part.index, number = number, number + 1
            yield key, Shard(part.index, tuple(part.prompts))
    for key, part in filling.items():
        if part.index is None:
            part.index, number = number, number + 1
        yield key, Shard(part.index, tuple(part.prompts))


def in_order(shards: Iterable[tuple[BatchKey, Shard]], first: int) -> Iterator[Shard]:
    """Yields the shards from index ``first`` on, in the order of their indices."""
    early: dict[int, Shard] = {}
    for _, shard in shards:
        if shard.index >= first:
            early[shard.index] = shard
        while first in early:
            yield early.pop(first)
            first += 1
