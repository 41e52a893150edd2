from types import SimpleNamespace

from tgate_batch.render.batch_size import BatchSizeController


def vae():
    made = SimpleNamespace(use_slicing=False)
    made.enable_slicing = lambda: setattr(made, "use_slicing", True)
    made.disable_slicing = lambda: setattr(made, "use_slicing", False)
    return made


def test_ladder_leads_down_by_halves_then_slices_then_ends():
    decoder = vae()
    ladder = BatchSizeController(8, decoder)
    rungs = [ladder.state]
    while ladder.shrink(ladder.size):
        rungs.append(ladder.state)
    assert rungs == [
        None,
        "batch of 4, not 8",
        "batch of 2, not 8",
        "batch of 1, not 8",
        "batch of 1, not 8, VAE in slices",
    ]
    assert decoder.use_slicing


def test_it_climbs_back_a_rung_after_eight_batches_that_fitted():
    decoder = vae()
    ladder = BatchSizeController(6, decoder)
    while ladder.shrink(ladder.size):
        pass
    sizes = []
    for _ in range(40):
        sizes.append((ladder.size, decoder.use_slicing))
        ladder.grow()
    assert sizes == [
        *[(1, True)] * 8,
        *[(1, False)] * 8,
        *[(2, False)] * 8,
        *[(4, False)] * 8,
        *[(6, False)] * 8,
    ]


def test_it_waits_twice_as_long_where_it_climbed_too_early():
    ladder = BatchSizeController(2, vae())
    waited, since = [], 0
    for batch in range(100):
        if ladder.size == 2:
            waited.append(batch - since)
            since = batch
            ladder.shrink(2)
        ladder.grow()
    assert waited == [0, 8, 16, 32]


def test_slices_that_the_pipeline_came_with_stay():
    decoder = vae()
    decoder.enable_slicing()
    ladder = BatchSizeController(1, decoder)
    assert not ladder.shrink(1)
    assert decoder.use_slicing
    assert ladder.state is None
