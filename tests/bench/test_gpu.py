"""The GPU table's cells: their order, the file that keeps them, what each measures."""

import json
from collections import Counter

import pytest
import torch

from tgate_batch.bench.cells import SIZES, Cell, Kept
from tgate_batch.bench.gpu import bench_gpu
from tgate_batch.bench.work import kind_of, limit, products, profiled, work_of
from tgate_batch.errors import UserError

CELL = Cell("arms", "sdxl", 25, 8, {"compile": "regional"})


def test_every_cell_is_measured_once_and_sdxl_comes_first():
    for size in SIZES.values():
        cells = size.cells()
        assert max(Counter(map(str, cells)).values()) == 1
        assert (cells[0].what, cells[0].model, cells[0].batch) == ("arms", "sdxl", size.batches[0])
        compiled = {(cell.what, cell.model, cell.engine.get("compile")) for cell in cells}
        for model in size.models:
            assert {("arms", model, how) for how in (None, "regional", True)} <= compiled


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


def test_cell_that_fails_is_kept_with_its_error_and_measured_again_only_when_asked(tmp_path):
    file, calls = tmp_path / "cells.jsonl", []

    class Failing:
        def __getattr__(self, name):
            calls.append(name)
            raise RuntimeError("no such kernel")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tgate_batch.bench.gpu.engine", Failing())
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
