"""Cuts a prompt set into shards by kind of row, so that batches stay full.

Rows of a size, a number of steps and a use of guidance of their own cannot share a batch with
others. A shard holds rows of one kind, in the set's order, and each row knows its place in the set.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tgate_batch.prompts.reader import next_size
from tgate_batch.records import AS_OTHERS, AS_THE_RUN, BatchKey, Prompt, Shard


@dataclass
class _Part:
    """A shard that fills; ``index``: None until it is full, where it is not planned before."""

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
    """Fills the planned shards (their kinds and sizes), then cuts ``joining`` more prompts.

    Yields a shard when it is full: planned ones under their numbers, further ones numbered in the
    order in which they are. What is not full comes at the end. Shards become smaller as the set
    goes on, in whole batches of ``batch``. ``apart`` as in ``RowSettings.kind``. In memory is a
    shard of every kind.
    """
    waiting: dict[BatchKey, deque[tuple[int, int]]] = defaultdict(deque)
    for index, (kind, size) in enumerate(planned):
        waiting[kind].append((index, size))
    filling: dict[BatchKey, _Part] = {}
    left, number = joining, len(planned)
    for prompt in prompts:
        kind = AS_OTHERS if prompt.overrides is AS_THE_RUN else prompt.overrides.batch_key(apart)
        part = filling.get(kind)
        if part is None:
            if waiting[kind]:
                part = _Part(*waiting[kind].popleft())
            else:
                size = next_size(left, joining, largest, batch) if left > 0 else largest
                part = _Part(None, size)
            filling[kind] = part
        part.prompts.append(prompt)
        if len(part.prompts) == part.size:
            del filling[kind]
            if part.index is None:
                left -= part.size
                part.index, number = number, number + 1
            yield kind, Shard(part.index, tuple(part.prompts))
    for kind, part in filling.items():
        if part.index is None:
            part.index, number = number, number + 1
        yield kind, Shard(part.index, tuple(part.prompts))


def in_order(shards: Iterable[tuple[BatchKey, Shard]], first: int) -> Iterator[Shard]:
    """The shards from number ``first`` on, one after the other."""
    early: dict[int, Shard] = {}
    for _, shard in shards:
        if shard.index >= first:
            early[shard.index] = shard
        while first in early:
            yield early.pop(first)
            first += 1
