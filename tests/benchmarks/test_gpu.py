"""The GPU table's cells: their order, the file that keeps them, what each measures."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_job
from benchmarks.cells import SIZES, Cell, Kept
from benchmarks.gpu import bench_gpu
from benchmarks.work import by_kind, kind_of, limit, products, profiled, work_of
from tgate_batch.config import Arm, Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.pipeline_runner import PipelineRunner

CELL = Cell("arms", "sdxl", 25, 8, {"compile": "regional"})


def test_every_cell_is_measured_once_and_sdxl_comes_first():
    for size in SIZES.values():
        cells = size.cells()
        assert max(Counter(map(str, cells)).values()) == 1
        assert (cells[0].what, cells[0].model, cells[0].batch) == ("arms", "sdxl", size.batches[0])
        compiled = {(cell.what, cell.model, cell.engine.get("compile")) for cell in cells}
        for model in size.models:
            assert {("arms", model, how) for how in (None, "regional", True)} <= compiled


def test_bits_take_few_steps_so_that_a_short_hold_of_a_gpu_has_them():
    steps = {cell.steps for cell in SIZES["full"].cells() if cell.what == "bits"}
    assert max(steps) < min(SIZES["full"].steps)


def test_small_size_has_every_kind_of_cell_that_the_full_one_has():
    kinds = {
        name: {(cell.what, cell.model, *cell.engine) for cell in size.cells()}
        for name, size in SIZES.items()
    }
    assert kinds["small"] == kinds["full"]


def test_measured_cell_is_on_the_disk_at_once_and_there_after_a_cut(tmp_path):
    file = tmp_path / "cells.jsonl"
    Kept(file, "a card").keep(CELL, {"seconds": 2})
    Kept(file, "another card").keep(CELL, {"seconds": 3})
    with file.open("a") as cut:
        cut.write('{"device": "a card", "cel')
    assert Kept(file, "a card").cells == {str(CELL): {"seconds": 2}}
    Kept(file, "a card").keep(CELL, {"seconds": 4})
    assert Kept(file, "a card").cells == {str(CELL): {"seconds": 4}}
    assert Kept(file, "another card").cells == {str(CELL): {"seconds": 3}}


def test_file_of_cells_is_made_with_its_folder_before_anything_is_measured(tmp_path):
    Kept(tmp_path / "new" / "cells.jsonl", "a card")
    assert (tmp_path / "new" / "cells.jsonl").read_text() == ""
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        Kept(tmp_path / "new", "a card")


def test_a_line_that_is_no_cell_is_refused(tmp_path):
    file = tmp_path / "cells.jsonl"
    file.write_text("{}\n")
    with pytest.raises(UserError, match="line 1 is no measured cell"):
        Kept(file, "a card")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix product"),
        ("mkldnn::_linear_pointwise", "matrix product"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::_scaled_dot_product_flash_attention", "attention"),
        ("aten::_flash_attention_forward", "attention"),
        ("aten.mm", "matrix product"),
        ("aten::gelu", "other"),
        ("void at::native::vectorized_elementwise_kernel", "other"),
    ],
)
def test_operations_are_told_apart_by_name(operation, kind):
    assert kind_of(operation) == kind


def test_work_is_two_operations_a_multiply_accumulate_and_a_number_written_elsewhere():
    layer = torch.nn.Linear(3, 5, bias=False)
    done = work_of(lambda: torch.relu(layer(torch.ones(2, 3))))
    assert done["matrix product"] == products(done) == 2 * 2 * 3 * 5
    assert done["other"] == 2 * 3 + 2 * 5  # ones and relu
    assert done["convolution"] == done["attention"] == 0


def test_limit_weighs_each_kind_by_its_time_in_the_baseline():
    baseline = {"attention": 8, "other": 100}
    gated = {"attention": 2, "other": 50}
    assert limit(gated, baseline, {"attention": 4.0, "other": 2.0}) == 6 / (1 + 1)
    assert limit(baseline, baseline, {"attention": 4.0, "other": 2.0}) == 1
    assert limit({"attention": 0}, {"attention": 0}, {"attention": 1.0}) == 1  # none in either


def test_profile_adds_up_to_the_time_of_all_operations():
    found = profiled(lambda: torch.ones(64, 64) @ torch.ones(64, 64))
    assert found["seconds"]["matrix product"] > 0
    assert sum(found["seconds"].values()) == pytest.approx(
        sum(s for _, s in found["most"]), abs=1e-4
    )


def event(key, on_gpu, microseconds, is_span=False):
    kind = torch.autograd.DeviceType
    return SimpleNamespace(
        key=key,
        device_type=kind.CUDA if on_gpu else kind.CPU,
        self_device_time_total=microseconds,
        is_user_annotation=is_span,
    )


def test_kernels_of_a_compiled_region_are_counted_once():
    events = [
        event("aten::mm", False, 3e6),
        event("sm90_xmma_gemm", True, 3e6),
        event("triton_poi_fused_add_0", True, 1e6),
        event("Torch-Compiled Region: 0/0", True, 4e6, is_span=True),
    ]
    found = by_kind(events, on_gpu=True)
    assert found["seconds"]["matrix product"] == 3
    assert found["seconds"]["other"] == 1
    assert [name for name, _ in found["most"]] == ["sm90_xmma_gemm", "triton_poi_fused_add_0"]


def a_bench(folder, monkeypatch, model="sd15"):
    """A bench of the small size whose pipeline is the tiny one."""
    monkeypatch.setattr(gpu._Bench, "_pipeline", lambda *_: catalogue.tiny(model))
    return gpu._Bench(SIZES["small"], Kept(folder / "cells.jsonl", "a card"), rounds=1)


def test_kernel_of_attention_that_a_cell_names_is_the_one_that_draws(tmp_path, monkeypatch):
    bench, allowed = a_bench(tmp_path, monkeypatch), []

    def drawn(generator):
        allowed.append(torch.backends.cuda.flash_sdp_enabled())
        return [None]

    monkeypatch.setattr(gpu.random_weights, "call", lambda *_: drawn)
    for chosen in ({}, {"attention": "math"}):
        bench._model(Cell("arms", "sd15", 5, 1, chosen)).call(5)()
    assert allowed == [True, False]
    math = Cell("arms", "sd15", 5, 1, {"attention": "math"})
    bench._work(math, bench._model(math))  # which all kernels share
    assert set(allowed[2:]) == {True}


def test_where_no_kernel_is_seen_an_arm_has_its_speed_and_no_limit(tmp_path, monkeypatch):
    """As in a container whose driver keeps its counters to itself."""
    bench = a_bench(tmp_path, monkeypatch)
    nothing = {"seconds": dict.fromkeys(("convolution", "matrix product", "attention"), 0.0)}
    monkeypatch.setattr(gpu, "profiled", lambda _: nothing)
    monkeypatch.setattr(bench, "_gated", lambda *_: None)
    monkeypatch.setattr(bench, "_cache", lambda *_: None)
    work = {"matrix product": 2, "other": 1}
    monkeypatch.setattr(bench, "_work", lambda *_: dict.fromkeys(bench_arms(bench), work))
    bench.measure(Cell("arms", "sd15", 5, 1))
    (measured,) = bench.kept.cells.values()
    assert measured["tgate"]["limit"] is measured["tgate"]["of_the_limit"] is None
    assert measured["tgate"]["speedup"]["median"] > 0


def bench_arms(bench):
    return bench._arms(catalogue.tiny("sd15"), 5)


def test_vae_by_itself_is_laid_out_as_that_of_a_run(tmp_path, monkeypatch):
    bench, layouts = a_bench(tmp_path, monkeypatch), []

    def timed(calls, *_, **__):
        weight = calls["decode"].args[0].vae.decoder.conv_in.weight
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(gpu, "in_turns", timed)
    monkeypatch.setattr(bench, "_gated", lambda *_: None)
    bench.measure(Cell("decode", "sd15", 5, 1))
    (measured,) = bench.kept.cells.values()
    assert measured["float32"]["seconds"] == 1
    assert layouts == [True]


def test_gpu_that_is_lost_ends_the_run_and_its_cell_is_kept(tmp_path, monkeypatch):
    bench = a_bench(tmp_path, monkeypatch)
    bench._on_gpu = True

    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(bench, "_model", lost)
    with pytest.raises(UserError, match=r"left the GPU unusable .*illegal memory access"):
        bench.measure(CELL)
    assert "illegal" in Kept(tmp_path / "cells.jsonl", "a card").cells[str(CELL)]["error"]


def test_bare_loop_runs_where_the_vae_was_raised_to_decode(tmp_path):
    """A half-precision SDXL, as on a GPU: the job keeps its VAE in float32, the bare call not."""
    pipe = catalogue.tiny("sdxl")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        torch.nn.Module.to(getattr(pipe, part), torch.float16)
    sampling = Sampling(steps=1, height=32, width=32, batch_size=1)
    runner = PipelineRunner(pipe, catalogue.family_of("sdxl"), catalogue.resolve("sdxl", sampling))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    cell = Cell("job", "sdxl", 1, 1)
    settings = gpu_job._settings(cell, "baseline", tmp_path, prompts, tmp_path / "out")
    assert pipe.vae.dtype == torch.float32
    assert min(gpu_job._bare_rates(settings, runner, Arm())) > 0


def test_cell_that_fails_is_kept_with_its_error_and_measured_again_only_when_asked(tmp_path):
    file, calls = tmp_path / "cells.jsonl", []

    class Failing:
        def __getattr__(self, name):
            calls.append(name)
            raise RuntimeError("no such kernel")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.gpu.engine", Failing())
        only = ("bits, sdxl, 5 steps, 2", "regional")
        (said,) = bench_gpu("small", file, only=only)["cells"].values()
        assert said == {"error": "RuntimeError: no such kernel"}
        bench_gpu("small", file, only=only)
        assert len(calls) == 1
        bench_gpu("small", file, only=only, retry=True)
        assert len(calls) == 2


def test_no_cell_is_begun_after_the_time_is_up(tmp_path):
    found = bench_gpu("small", tmp_path / "cells.jsonl", minutes=0, only=("arms", "sd15"))
    assert found["cells"] == {}
    assert found["left"] == [
        str(cell) for cell in SIZES["small"].cells() if (cell.what, cell.model) == ("arms", "sd15")
    ]


@pytest.mark.slow
def test_a_cell_of_each_kind_is_measured_on_a_cpu(tmp_path):
    file = tmp_path / "cells.jsonl"
    for what in ("arms, pixart_sigma, 5 steps, 1", "profile, sdxl", "bits, sdxl", "decode, sdxl"):
        bench_gpu("small", file, rounds=1, only=(what,), minutes=0.01)
    found = bench_gpu("small", file, rounds=1, only=("job",))["cells"]
    assert not [cell for cell, measured in found.items() if "error" in measured]
    arms = found["arms, pixart_sigma, 5 steps, 1"]
    assert arms["baseline"]["of_the_limit"] == pytest.approx(1)
    assert arms["tgate-v1"]["limit"] > arms["tgate"]["limit"] > 1  # its gate is the earlier
    assert all(arm["same"] for arm in found["bits, sdxl, 5 steps, 2"].values())
    assert found["decode, sdxl, 5 steps, 2"]["float32"]["seconds"] > 0
    (job,) = (measured for cell, measured in found.items() if cell.startswith("job"))
    assert job["baseline"]["job_over_bare"]["median"] > 0
    assert len(file.read_text().splitlines()) == len(found)
    assert json.loads(file.read_text().splitlines()[0])["device"].endswith("small")
