import itertools
import os
import signal

import pyarrow.dataset as ds
import pytest
import ray

from tgate_batch import actors, config
from tgate_batch import run as runs
from tgate_batch.actors import _Task
from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.records import Prompt, Shard
from tgate_batch.run import Missing


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def render(settings, **sections):
    run = prepared(settings, **sections)
    with pool_of(run) as pool:
        return run, list(filter(None, pool.render()))


def prepared(settings, **sections):
    run = runs.prepare(config.parse({**settings, **sections}))
    runs.freeze(run)
    return run


def pool_of(run):
    return actors.Pool(run, {(model.name, arm): {} for model, arm, _ in run.pairs()})


def pictures(output, arm):
    """(prompt id, image bytes) of an arm, sorted."""
    table = ds.dataset(f"{output}/images", format="parquet", partitioning="hive").to_table()
    rows = [row for row in table.to_pylist() if row["arm"] == arm]
    return sorted((row["prompt_id"], row["image"]["bytes"]) for row in rows)


def test_every_prompt_is_in_every_arm_once_and_a_second_run_has_nothing_to_do(settings):
    run, receipts = render(settings)
    assert sorted((r.arm, r.shard, r.images, r.errors) for r in receipts) == [
        (arm, shard, size, 0)
        for arm in ("baseline", "tgate")
        for shard, size in enumerate((4, 4, 2))
    ]
    for arm in ("baseline", "tgate"):
        found = [identity for identity, _ in pictures(settings["output"], arm)]
        assert found == [f"c{i}" for i in range(10)]
    assert list(runs.missing(run)) == []


def test_missing_file_alone_is_rendered_again_and_is_the_same(settings, tmp_path):
    run, _ = render(settings)
    before = pictures(settings["output"], "tgate")
    os.remove(run.folder.path("images/model=sd15/arm=tgate/shard-00001.parquet"))
    _, receipts = render(settings)
    assert [(r.arm, r.shard) for r in receipts] == [("tgate", 1)]
    assert pictures(settings["output"], "tgate") == before


def test_two_workers_make_the_pictures_of_one(settings, tmp_path):
    render(settings, workers={"max": 1}, output=str(tmp_path / "one"))
    render(settings, workers={"min": 2, "max": 2}, output=str(tmp_path / "two"))
    for arm in ("baseline", "tgate"):
        assert pictures(tmp_path / "one", arm) == pictures(tmp_path / "two", arm)


def test_killed_worker_costs_nothing_but_time(settings):
    run = prepared(settings, workers={"max": 1})
    with pool_of(run) as pool:
        for number, _ in enumerate(filter(None, pool.render())):
            if number == 0:
                os.kill(ray.get(pool._seats[0].actor.process.remote()), signal.SIGKILL)
        assert pool.deaths == 1
    found = [identity for identity, _ in pictures(settings["output"], "tgate")]
    assert found == [f"c{i}" for i in range(10)]


def test_model_that_cannot_be_loaded_stops_the_run_with_its_reason(settings, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="sd15 cannot be loaded"):
        render(settings, models=[{"name": "sd15", "path": str(folder)}])


def test_worker_that_fits_no_machine_is_refused(settings):
    with pytest.raises(UserError, match="each asks 64 CPU"):
        render(settings, workers={"cpus_each": 64})


@pytest.mark.parametrize("count", range(1, 10))
def test_prompt_that_kills_its_worker_is_found_and_no_other_is_blamed(count):
    prompts = tuple(Prompt(f"p{i}", "x") for i in range(count))
    for poison in itertools.chain.from_iterable(
        itertools.combinations(prompts, size) for size in (1, 2)
    ):
        task = _Task(Missing(Model(name="sd15"), Shard(0, prompts), ("a",)))
        for _ in range(100):
            on_device = task.suspects[-1] if task.is_trial else prompts
            dies = any(p in poison and p.id not in task.quarantined for p in on_device)
            if dies:
                task.worker_died()
            elif task.is_trial:
                task.trial_survived()
            else:
                break
        assert set(task.quarantined) == {p.id for p in poison}


def test_shard_that_dies_without_a_guilty_prompt_ends_as_error_rows():
    prompts = tuple(Prompt(f"p{i}", "x") for i in range(4))
    task = _Task(Missing(Model(name="sd15"), Shard(0, prompts), ("a",)))
    while len(task.quarantined) < 4:
        if task.is_trial:
            task.trial_survived()
        else:
            task.worker_died()
    assert set(task.quarantined) == {p.id for p in prompts}
