"""Shards are cut by kind of row, and batches stay full."""

import random

import pytest

from tgate_batch.prompts.batching import cut_shards, in_order
from tgate_batch.prompts.reader import shard_sizes, shards
from tgate_batch.records import BatchKey, Prompt, RowSettings, Shard

OWN = [
    RowSettings(height=height, steps=steps, guidance_scale=scale)
    for height in (256, 512)
    for steps in (10, 25)
    for scale in (1.0, 7.5)
]
BATCH = 8


def mixed(number: int, kinds: int = 8, seed: int = 0) -> list[Prompt]:
    """Prompts whose kinds follow one another by chance."""
    chosen = random.Random(seed).choices(OWN[:kinds], k=number)
    return [
        Prompt(f"p{place}", f"number {place}", overrides=overrides, source_row=place)
        for place, overrides in enumerate(chosen)
    ]


def cut_all(
    prompts, planned=(), largest=64, batch=BATCH, apart=False
) -> list[tuple[BatchKey, Shard]]:
    joining = len(prompts) - sum(size for _, size in planned)
    return list(cut_shards(prompts, planned, joining, largest, batch, apart))


@pytest.mark.parametrize("number", [0, 1, 7, 100, 2000, 5003])
def test_a_uniform_set_is_cut_as_if_there_were_no_kinds(number):
    prompts = [Prompt(f"p{place}", "text", source_row=place) for place in range(number)]
    sizes = shard_sizes(number, 64, BATCH)
    assert [shard for _, shard in cut_all(prompts)] == list(shards(prompts, sizes))


def test_a_set_whose_rows_all_have_the_same_settings_is_cut_so_too():
    prompts = mixed(1000, kinds=1)
    assert [shard for _, shard in cut_all(prompts)] == list(
        shards(prompts, shard_sizes(1000, 64, BATCH))
    )


@pytest.mark.parametrize("seed", range(5))
def test_batches_of_eight_kinds_stay_full(seed):
    found = cut_all(mixed(2000, seed=seed))
    drawn = sum(-(-len(shard.prompts) // BATCH) * BATCH for _, shard in found)
    assert drawn / 2000 <= 1.1
    assert max(len(shard.prompts) for _, shard in found) <= 64
    assert len(found[-9][1].prompts) <= len(found[0][1].prompts)  # smaller towards the end


def test_a_shard_holds_one_kind_and_all_rows_are_there_in_order():
    prompts = mixed(500)
    found = cut_all(prompts)
    of_kinds: dict[BatchKey, list[int]] = {}
    for kind, shard in found:
        assert {prompt.overrides.batch_key() for prompt in shard.prompts} == {kind}
        of_kinds.setdefault(kind, []).extend(prompt.source_row for prompt in shard.prompts)
    assert all(places == sorted(places) for places in of_kinds.values())
    assert sorted(place for places in of_kinds.values() for place in places) == list(range(500))
    assert sorted(shard.index for _, shard in found) == list(range(len(found)))


@pytest.mark.parametrize("first", [1, 100, 999])
def test_a_longer_set_fills_the_same_shards_and_adds_others(first):
    prompts = mixed(1000)
    before = sorted(cut_all(prompts[:first]), key=lambda found: found[1].index)
    planned = [(kind, len(shard.prompts)) for kind, shard in before]
    after = sorted(cut_all(prompts, planned), key=lambda found: found[1].index)
    assert after[: len(before)] == before
    assert sum(len(shard.prompts) for _, shard in after) == 1000


def test_planned_shards_are_filled_again_in_their_order():
    prompts = mixed(300)
    made = sorted(cut_all(prompts), key=lambda found: found[1].index)
    planned = [(kind, len(shard.prompts)) for kind, shard in made]
    again = in_order(cut_shards(prompts, planned, 0, 64, 1, False), first=3)
    assert list(again) == [shard for _, shard in made[3:]]


def test_differing_guidance_is_one_kind_or_several_as_the_model_allows():
    prompts = [
        Prompt(str(place), "text", overrides=RowSettings(guidance_scale=scale))
        for place, scale in enumerate([2.0, 7.5, 1.0, 0.0])
    ]
    assert len(cut_all(prompts)) == 2
    assert len(cut_all(prompts, apart=True)) == 4


def test_no_more_than_a_shard_of_each_kind_waits():
    prompts = mixed(10_000)
    taken, given = 0, 0

    def counted():
        nonlocal taken
        for prompt in prompts:
            taken += 1
            yield prompt

    for _, shard in cut_shards(counted(), (), 10_000, 64, BATCH, False):
        given += len(shard.prompts)
        assert taken - given <= 8 * 64
