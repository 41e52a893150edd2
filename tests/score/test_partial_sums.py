"""Sums of fabricated measurements: nothing but the images decides a figure."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.scale_scoring import Fabricated, fabricate, scored
from tgate_batch import config
from tgate_batch.execute.local import LocalExecutor
from tgate_batch.execute.scoring import conclude_arms
from tgate_batch.metrics import kid
from tgate_batch.metrics.frechet import FrechetRoot, Statistics, frechet_distance
from tgate_batch.metrics.jackknife import GROUPS, estimate, groups
from tgate_batch.output import layout, parquet
from tgate_batch.output import run as runs
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.score import aggregate, partial_sums
from tgate_batch.score.measurement_plan import MeasurementPlan
from tgate_batch.score.partial_sums import ArmSums, Sample, chunks
from tgate_batch.score.scoring import conclude_orders

ROWS, DIMENSIONS, SHARD = 640, 8, 64
FEATURES = layout.features(Fabricated.name, "demo", "tgate")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fabricate(tmp_path_factory.mktemp("made"), ROWS, DIMENSIONS, SHARD, 300)


@pytest.fixture
def settings(made, tmp_path) -> config.Config:
    """The config of a copy of the run."""
    shutil.copytree(made.output, tmp_path / "out")
    return made.model_copy(update={"output": str(tmp_path / "out")})


def folder_of(settings):
    return runs.load_run(settings.output).folder


def features(settings, arm) -> np.ndarray:
    folder = folder_of(settings)
    names = folder.names(layout.features(Fabricated.name, "demo", arm), ".parquet")
    columns = [parquet.read_table(folder, name)["features"].combine_chunks() for name in names]
    rows = [column.values.to_numpy().reshape(len(column), -1) for column in columns]
    return np.concatenate(rows)


def reference(settings) -> np.ndarray:
    with np.load(settings.score.reference) as archive:
        return archive["sample"]


def numbers(found, path=()):
    """Every number of some scores, by where it stands."""
    for key, value in found.items():
        if isinstance(value, dict):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float):
            yield (*path, key), value


def assert_alike(one, other):
    for arm in one:
        mine, theirs = dict(numbers(one[arm])), dict(numbers(other[arm]))
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)


def by_hand(rows, other) -> list[float]:
    """The 21 Frechet distances, each from the features themselves."""
    held, beside = groups(np.arange(len(rows))), Statistics.of(other)
    kept = [held >= 0, *(held != group for group in range(GROUPS))]
    return np.array([frechet_distance(Statistics.of(rows[chosen]), beside) for chosen in kept])


def test_distance_and_its_change_are_the_jackknife_written_out(settings):
    found = scored(settings)
    arms = {arm: by_hand(features(settings, arm), reference(settings)) for arm in found}
    corrected = estimate(arms["tgate"])
    change = estimate(arms["tgate"] - arms["baseline"])
    assert found["tgate"]["fd"] == pytest.approx(arms["tgate"][0], rel=1e-9)
    for key, expected in (("distance_corrected", corrected), ("distance_change", change)):
        held = found["tgate"][key]
        ours = (held["value"], held["low"], held["high"])
        assert ours == pytest.approx((expected.value, expected.low, expected.high), rel=1e-6)


def test_kernel_distance_is_the_unbiased_formula(settings):
    rows, other = features(settings, "tgate"), reference(settings)
    sums = kid.kernel_sums(rows, groups(np.arange(ROWS)), np.arange(ROWS), other)
    assert scored(settings)["tgate"]["kid"]["value"] == pytest.approx(
        estimate(sums.values()).value, rel=1e-9
    )


def test_shards_of_another_size_change_no_figure(settings, tmp_path):
    other = fabricate(tmp_path, ROWS, DIMENSIONS, 160, 300)
    assert_alike(scored(settings), scored(other))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(partial_sums, "CHUNK", 150)


def test_chunks_change_no_figure(settings, small_chunks):
    several = scored(settings)
    assert len(folder_of(settings).names(layout.SUMS)) == 2 * (4 + 1)  # four full, and the total
    shutil.rmtree(folder_of(settings).path(layout.SUMS))
    partial_sums.CHUNK = 10**6
    assert_alike(several, scored(settings))


class Killed(Exception):
    pass


def test_killed_scoring_goes_on_and_gives_the_same_digits(settings, small_chunks, monkeypatch):
    undisturbed = scored(settings)
    shutil.rmtree(folder_of(settings).path(layout.SUMS))
    added, real = [], aggregate.chunk_sums

    def dies_at_the_third(folder, source, chunk):
        added.append((source.arm, chunk.index))
        if len(added) == 3:
            raise KeyboardInterrupt
        return real(folder, source, chunk)

    monkeypatch.setattr(aggregate, "chunk_sums", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        scored(settings)
    kept = set(added[:2])
    assert scored(settings) == undisturbed
    assert kept.isdisjoint(added[3:])


def test_scoring_again_reads_the_conclusions_alone(settings, monkeypatch):
    first = scored(settings)
    monkeypatch.setattr(aggregate, "chunk_sums", None)
    assert scored(settings) == first


def test_damaged_sums_are_added_up_again(settings, small_chunks):
    first, folder = scored(settings), folder_of(settings)
    for name in folder.names(layout.SUMS):
        with open(folder.path(name), "r+b") as stream:
            stream.truncate(200)
    assert scored(settings) == first


def without(settings, arm, pictures):
    """Breaks some of an arm's images, as if they had been found broken."""
    folder = folder_of(settings)
    run = runs.load_run(settings.output)
    first = 0
    for plan in run.shards:
        lost = [number - first for number in pictures if 0 <= number - first < plan.prompts]
        keep = np.setdiff1d(np.arange(plan.prompts), lost)
        first += plan.prompts
        name = layout.shard_file(layout.measured(layout.ROWS, "demo", arm), plan.index)
        table = parquet.read_table(folder, name)
        identity = table.schema.metadata[layout.IDENTITY_KEY].decode()
        column = table["broken"].to_pylist()
        for number in lost:
            column[number] = "all black"
        position = table.schema.get_field_index("broken")
        table = table.set_column(position, "broken", pa.array(column, pa.string()))
        parquet.write_table(folder, name, table, identity)
        name = layout.shard_file(layout.features(Fabricated.name, "demo", arm), plan.index)
        table = parquet.read_table(folder, name)
        identity = table.schema.metadata[layout.IDENTITY_KEY].decode()
        parquet.write_table(folder, name, table.take(keep), identity)


@pytest.mark.parametrize("broken", ["tgate", "baseline"])
def test_change_is_over_the_pictures_that_both_arms_have(settings, broken):
    before = {arm: features(settings, arm) for arm in ("baseline", "tgate")}
    lost = [3, 100, 101, 639]
    without(settings, broken, lost)
    found = scored(settings)["tgate"]
    kept = np.setdiff1d(np.arange(ROWS), lost)
    held = groups(np.arange(ROWS))[kept]
    root = FrechetRoot(Statistics.of(reference(settings)))
    values = {
        arm: np.array(
            [
                root.distance(Statistics.of(rows[kept][chosen]))
                for chosen in [held >= 0, *(held != group for group in range(GROUPS))]
            ]
        )
        for arm, rows in before.items()
    }
    change = estimate(values["tgate"] - values["baseline"])
    assert found["prompts_compared"] == ROWS - 4
    assert found["distance_change"]["value"] == pytest.approx(change.value, rel=1e-6)
    assert found["distance_change"]["low"] == pytest.approx(change.low, rel=1e-6)
    kernels = [
        kid.kernel_sums(rows[kept], held, kept, reference(settings)).values()
        for rows in (before["tgate"], before["baseline"])
    ]
    change = estimate(kernels[0] - kernels[1])
    assert found["kid_change"]["value"] == pytest.approx(change.value, rel=1e-6)


def test_yes_no_change_counts_those_gained_and_lost(settings):
    found = scored(settings)["tgate"]["change"]["prompt_accuracy"]
    assert (found["gained"], found["lost"], found["count"]) == (13, 0, ROWS)
    assert found["value"] == 13 / ROWS


def test_speedup_is_the_ratio_of_seconds_with_an_interval_around_it(settings):
    found = scored(settings)["tgate"]
    assert found["speedup_interval"]["low"] < 2.0 / 1.4 < found["speedup_interval"]["high"]


def test_below_three_pictures_a_dimension_no_change_is_shown(tmp_path):
    found = scored(fabricate(tmp_path, 64, 32, 64, 100))["tgate"]
    assert found["distance_change"] is found["distance_corrected"] is None
    reason = "not comparable: 2.00 images per dimension, 96 needed"
    assert found["withheld"]["distance_change"] == reason
    assert found["kid_change"] is not None


def test_below_forty_prompts_there_is_no_interval(tmp_path):
    found = scored(fabricate(tmp_path, 32, 4, 64, 100))["tgate"]
    assert found["withheld"]["kid_change"] == "32 prompts, and an interval needs 40"
    assert found["change"]["prompt_accuracy"]["low"] is None


def test_chunks_are_cut_by_pictures_and_the_last_one_is_open():
    plans = [ShardPlan(index, 64, "d", 0, index) for index in range(5)]
    found = chunks(plans, images_per_prompt=partial_sums.CHUNK // 128, batch_size=7)
    assert [len(chunk.shards) for chunk in found] == [2, 2, 1]
    assert [chunk.first_prompt for chunk in found] == [0, 128, 256]
    assert [chunk.full for chunk in found] == [True, True, False]
    assert found[1].first_batch == 2 * -(-64 * (partial_sums.CHUNK // 128) // 7)


def test_sample_has_the_same_places_whatever_the_parts_and_the_arm(monkeypatch):
    monkeypatch.setattr(partial_sums, "SAMPLE", 50)
    rows = np.arange(4000, dtype=np.float32)[:, None]

    def sample(parts):
        found = Sample(1)
        for part in np.array_split(np.arange(4000), parts):
            more = Sample(1)
            more.add(part, np.ones(len(part), bool), rows[part])
            found.merge(more)
        return found

    one = sample(1)
    assert len(one.places) == 50
    assert (one.places == one.rows[:, 0]).all()
    for parts in (2, 7, 40):
        assert (sample(parts).places == one.places).all()


def test_summary_is_stored_as_it_is_and_refused_under_another_identity(settings, tmp_path):
    summary = ArmSums({("a", "b"): np.arange(20.0)}, macs={"m": {"7": 3}})
    with open(tmp_path / "s.npz", "wb") as stream:
        summary.save(stream, "me")
    content = (tmp_path / "s.npz").read_bytes()
    again = ArmSums.load(content, "me")
    assert again.macs == summary.macs
    assert (again.sums["a", "b"] == summary.sums["a", "b"]).all()
    assert ArmSums.load(content, "you") is None
    assert ArmSums.load(content[:-50], "me") is None


def test_figures_are_broken_down_by_a_column_of_the_prompts(tmp_path):
    file = tmp_path / "prompts.csv"
    lines = [f"p{n},image {n},{'odd' if n % 2 else 'even'}" for n in range(200)]
    file.write_text("id,caption,kind\n" + "\n".join(lines) + "\n")
    changed = {"path": str(file), "shard_size": 64}
    made = fabricate(tmp_path, 200, 4, 64, 100, prompts=changed, by="kind")
    found = scored(made)["tgate"]
    assert {name: part["prompts"] for name, part in found["by"].items()} == {
        "even": 100,
        "odd": 100,
    }
    halves = found["by"].values()
    assert sum(part["prompt_accuracy"] for part in halves) / 2 == found["prompt_accuracy"]
    gained = [part["change"]["prompt_accuracy"]["gained"] for part in found["by"].values()]
    assert sum(gained) == found["change"]["prompt_accuracy"]["gained"] == 4


def test_measurement_that_is_damaged_in_a_full_chunk_is_told(settings, small_chunks):
    folder = folder_of(settings)
    name = layout.shard_file(layout.measured("prompt_accuracy", "demo", "tgate"), 1)
    with open(folder.path(name), "r+b") as stream:
        stream.truncate(100)
    assert told(settings) == (name,)
    assert told(settings) == ()
    assert not folder.exists(
        layout.sums("demo", "tgate", 0)
    )  # nothing is kept of what lacks a file
    assert folder.exists(layout.sums("demo", "tgate", 1))


def told(settings) -> tuple[str, ...]:
    """The measurements that a scoring found damaged."""
    held = runs.load_run(settings.output)
    run = runs.Run(settings, held.folder, held.shards, held.ledger)
    every = MeasurementPlan.of(run)
    known = tuple(pair for pair in every.metrics if pair[0].name == "prompt_accuracy")
    orders = list(conclude_orders(run, MeasurementPlan(every.extractors, known, ()), {}, None))
    return conclude_arms(run, orders, {}, LocalExecutor(settings, run.folder)).damaged
