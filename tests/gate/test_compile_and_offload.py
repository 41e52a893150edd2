"""A compiled denoiser, and denoisers whose weights come and go."""

import copy

import pytest
import torch

from tgate_batch.gate import DeepCache, GatePlan, gated

PLAN = GatePlan(4, sp_interval=2, fi_interval=2, warm_up=0)


@pytest.fixture
def graphs():
    """Counts the graphs that a compiled module asks its backend for."""
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


class Counting:
    def __init__(self):
        self.count = 0

    def __call__(self, module, inputs):
        self.count += 1
        return module.forward


@pytest.fixture
def pipe(tiny_models):
    """PixArt with one block, since compiling takes its time."""
    pipe = tiny_models("pixart_alpha", fresh=True, scheduler="ddim")
    del pipe.transformer.transformer_blocks[1:]
    return pipe


@pytest.mark.parametrize(
    ("form", "plan"),
    [
        ("wrapped", GatePlan(2)),
        pytest.param("wrapped", PLAN, marks=pytest.mark.slow),
        pytest.param("in place", PLAN, marks=pytest.mark.slow),
    ],
)
def test_after_the_first_picture_nothing_more_is_compiled(pipe, arguments, graphs, form, plan):
    calls = [arguments(pipe, 1, steps=7, seed=seed) for seed in range(3)]
    plain = pipe(**calls[0])[0]
    with gated(pipe, plan):
        expected = [pipe(**call)[0] for call in calls]
    if form == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend=graphs, fullgraph=True)
    else:
        pipe.transformer.compile(backend=graphs)
    counts, pictures = [], []
    for call in calls:  # each in a block of its own, as batches and arms come
        with gated(pipe, plan):
            pictures.append(pipe(**call)[0])
        counts.append(graphs.count)
    actions = {(now.cross, now.self_, now.mean) for now in plan.schedule(7)}
    assert counts[0] == len(actions)
    assert counts == [counts[0]] * 3
    assert all(torch.equal(a, b) for a, b in zip(pictures, expected, strict=True))
    assert torch.equal(pipe(**calls[0])[0], plain)


@pytest.mark.slow
def test_arms_in_turn_are_compiled_once(tiny_models, arguments, graphs):
    """Torch stops compiling at eight graphs unless told; three arms of a U-Net need more."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe, 1, steps=7)
    arms = [(None, None), (PLAN, None), (GatePlan(3), DeepCache(3, 0))]

    def draw(plan, deepcache):
        with gated(pipe, plan, deepcache=deepcache):
            return pipe(**call)[0]

    expected = [draw(*arm) for arm in arms]
    pipe.unet.compile(backend=graphs, dynamic=False)
    counts = []
    with torch._dynamo.config.patch(recompile_limit=64):
        for _ in range(2):
            pictures = [draw(*arm) for arm in arms]
            assert all(torch.equal(a, b) for a, b in zip(pictures, expected, strict=True))
            counts.append(graphs.count)
    assert 8 < counts[0] == counts[1]


def test_blocks_compiled_by_themselves_share_their_graphs(tiny_models, arguments, graphs):
    """As many graphs as kinds of blocks and steps, however many blocks there are."""
    counts = []
    for blocks in (2, 4):
        pipe = tiny_models("pixart_alpha", fresh=True, scheduler="ddim")
        own = pipe.transformer.transformer_blocks
        own.extend(copy.deepcopy(own[-1]) for _ in range(blocks - len(own)))
        del own[blocks:]
        call = arguments(pipe, 1, steps=7)
        with gated(pipe, PLAN):
            expected = pipe(**call)[0]
        torch._dynamo.reset()
        before = graphs.count
        for block in own:
            block.compile(backend=graphs, dynamic=False)
        for _ in range(2):
            with gated(pipe, PLAN):
                assert torch.equal(pipe(**call)[0], expected)
            counts.append(graphs.count - before)
    assert counts == [counts[0]] * 4


def test_model_offload_keeps_the_gate_in_every_call(tiny_models, arguments):
    """Offloading pipelines take the denoiser's hooks off and on again after each call."""
    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe, 2)
    with gated(pipe, PLAN):
        expected = pipe(**call)[0]
    plain = pipe(**call)[0]
    pipe.enable_model_cpu_offload(device="cpu")
    with gated(pipe, PLAN):
        for _ in range(3):
            assert torch.equal(pipe(**call)[0], expected)
    assert torch.equal(pipe(**call)[0], plain)


def test_sequential_offload_keeps_the_gate(tiny_models, arguments):
    """As `enable_sequential_cpu_offload` does it; that itself needs another device than the CPU."""
    from accelerate import cpu_offload

    pipe = tiny_models("sd15", fresh=True, scheduler="ddim")
    call = arguments(pipe, 2)
    with gated(pipe, PLAN):
        expected = pipe(**call)[0]
    plain = pipe(**call)[0]
    cpu_offload(pipe.unet, "cpu", offload_buffers=True)
    for _ in range(2):
        with gated(pipe, PLAN):
            assert torch.equal(pipe(**call)[0], expected)
        assert torch.equal(pipe(**call)[0], plain)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_keeps_the_gate(tiny_models, arguments, kind):
    from diffusers.hooks import apply_group_offloading

    pipe = tiny_models("pixart_alpha", fresh=True, scheduler="ddim")
    call = arguments(pipe, 2)
    with gated(pipe, PLAN):
        expected = pipe(**call)[0]
    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
    )
    with gated(pipe, PLAN):
        for _ in range(2):
            assert torch.equal(pipe(**call)[0], expected)
