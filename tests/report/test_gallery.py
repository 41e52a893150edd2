"""The gallery's sample: which images are in it, and that their bytes have a limit."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tgate_batch.output import layout
from tgate_batch.output import run as runs
from tgate_batch.report import gallery


def noise(side):
    """An image that hardly compresses, as PNG."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize("side", [64, 512, 1024])
@pytest.mark.parametrize("budget", [4_000, 50_000])
def test_pictures_of_any_size_fit_into_the_bytes_that_they_may_take(side, budget):
    found = gallery.shrink([noise(side)] * 3, budget)
    assert sum(len(content) for content, _ in found) <= budget
    for content, size in found:
        with Image.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("WEBP", size)
            assert max(size) <= side


def test_small_pictures_stay_as_they_are_where_there_is_room():
    content = noise(64)
    (((shown, size)),) = gallery.shrink([content], 50_000)
    with Image.open(io.BytesIO(shown)) as ours, Image.open(io.BytesIO(content)) as theirs:
        assert size == (64, 64)
        assert ours.convert("RGB").tobytes() == theirs.tobytes()


def test_pictures_of_a_row_have_one_size():
    sizes = {size for _, size in gallery.shrink([noise(512), noise(512)], 20_000)}
    assert len(sizes) == 1


def test_those_that_changed_most_are_in_it_and_its_figures_are_theirs(finished, summary):
    (found,) = gallery.galleries(finished, summary["arms"])
    assert found.arms == ["baseline", "tgate", "deep"]
    cells = {(row.id, cell.arm): cell for row in found.rows for cell in row.cells}
    for arm in summary["arms"][1:]:
        worst = arm["most_changed"]["psnr"][0]
        cell = cells[worst["prompt_id"], arm["arm"]]
        assert f"PSNR {worst['value']:.1f} dB" in cell.figures
        assert cell.changed == -worst["value"]
    assert cells["p03", "tgate"].figures[-1] == "prompt accuracy: no (lost)"
    assert cells["p03", "tgate"].worse == 1.0
    assert cells["p03", "baseline"].figures == ["prompt accuracy: yes"]


def test_sample_is_the_same_every_time(finished, summary):
    first, second = (gallery.galleries(finished, summary["arms"]) for _ in range(2))
    assert first == second


def test_picture_that_failed_has_a_place_without_one(finished, summary):
    (found,) = gallery.galleries(finished, summary["arms"])
    cells = {(row.id, cell.arm): cell for row in found.rows for cell in row.cells}
    assert {key for key, cell in cells.items() if cell.uri is None} == {("p05", "tgate")}


def test_damaged_file_leaves_its_pictures_out(finished, summary, tmp_path):
    shutil.copytree(str(finished.folder), tmp_path / "run")
    run = runs.load_run(str(tmp_path / "run"))
    folder = layout.images("demo", "deep")
    for shard in run.shards:
        with open(run.folder.path(layout.shard_file(folder, shard.index)), "r+b") as stream:
            stream.truncate(200)
    (found,) = gallery.galleries(run, summary["arms"])
    shown = {cell.arm for row in found.rows for cell in row.cells if cell.uri is not None}
    assert shown == {"baseline", "tgate"}
