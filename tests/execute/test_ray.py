import itertools
import json
import os
import shutil
import signal

import pyarrow.dataset as ds
import pytest
import ray

from tgate_batch import config
from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.execute import ray as actors
from tgate_batch.execute.task import Task
from tgate_batch.output import run as runs
from tgate_batch.output.run import Missing
from tgate_batch.records import Prompt, Shard
from tgate_batch.render.time_sheet import BESIDE, ON_DEVICE


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    actors.start()
    yield
    ray.shutdown()


def render(settings, **sections):
    run = prepared(settings, **sections)
    with actors.Pool(run) as pool:
        return run, list(filter(None, pool.render()))


def prepared(settings, **sections):
    run = runs.prepare(config.parse({**settings, **sections}))
    runs.freeze(run)
    return run


def pictures(output, arm):
    """(prompt id, image bytes) of an arm, sorted."""
    table = ds.dataset(f"{output}/images", format="parquet", partitioning="hive").to_table()
    rows = [row for row in table.to_pylist() if row["arm"] == arm]
    return sorted((row["prompt_id"], row["image"]["bytes"]) for row in rows)


@pytest.fixture(scope="module")
def rendered(tiny, tmp_path_factory):
    """A finished run of one worker: its settings, its folder and its receipts."""
    here = tmp_path_factory.mktemp("rendered")
    captions = here / "captions.csv"
    captions.write_text("id,caption\n" + "".join(f"c{i},a picture of {i}\n" for i in range(10)))
    settings = {
        "models": [{"name": "sd15", "path": tiny}],
        "prompts": {"path": str(captions), "shard_size": 4},
        "sampling": {"steps": 4, "height": 32, "width": 32, "batch_size": 2},
        "arms": {"baseline": {}, "tgate": {"gate_step": 2}},
        "workers": {"max": 1},
        "output": str(here / "out"),
    }
    run, receipts = render(settings)
    return settings, run, receipts


def test_every_prompt_is_in_every_arm_once_and_nothing_is_left_to_do(rendered):
    settings, run, receipts = rendered
    assert sorted((r.arm, r.shard, r.images, r.errors) for r in receipts) == [
        (arm, shard, size, 0)
        for arm in ("baseline", "tgate")
        for shard, size in enumerate((4, 4, 2))
    ]
    for arm in ("baseline", "tgate"):
        found = [identity for identity, _ in pictures(settings["output"], arm)]
        assert found == [f"c{i}" for i in range(10)]
    assert list(runs.missing(run, runs.open_arms(run))) == []


def test_worker_says_where_its_time_went(rendered):
    _, run, _ = rendered
    (name,) = run.folder.names("workers", ".json")
    seconds = json.loads(run.folder.read(name))["seconds"]
    assert all(seconds[stage] > 0 for stage in (*ON_DEVICE, *BESIDE))
    assert sum(seconds[stage] for stage in ON_DEVICE) <= seconds["wall"]


def test_two_workers_fill_the_gaps_of_a_run_with_the_same_pictures(rendered, tmp_path):
    settings, _, _ = rendered
    here = shutil.copytree(settings["output"], tmp_path / "out")
    for arm, shard in (("tgate", 1), ("baseline", 2)):
        os.remove(here / f"images/model=sd15/arm={arm}/shard-{shard:05d}.parquet")
    _, receipts = render(settings, workers={"min": 2, "max": 2}, output=str(here))
    assert sorted((r.arm, r.shard) for r in receipts) == [("baseline", 2), ("tgate", 1)]
    for arm in ("baseline", "tgate"):
        assert pictures(here, arm) == pictures(settings["output"], arm)


def test_killed_worker_costs_nothing_but_time(settings):
    run = prepared(settings, workers={"max": 1})
    with actors.Pool(run) as pool:
        for number, _ in enumerate(filter(None, pool.render())):
            if number == 0:
                os.kill(ray.get(pool._seats[0].actor.stand.remote(None)), signal.SIGKILL)
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
    with pytest.raises(UserError, match="each asks 4096 CPU"):
        render(settings, workers={"cpus_each": 4096})


@pytest.mark.parametrize("count", range(1, 10))
def test_prompt_that_kills_its_worker_is_found_and_no_other_is_blamed(count):
    prompts = tuple(Prompt(f"p{i}", "x") for i in range(count))
    for poison in itertools.chain.from_iterable(
        itertools.combinations(prompts, size) for size in (1, 2)
    ):
        task = Task(Missing(Model(name="sd15"), Shard(0, prompts), ("a",)))
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
    task = Task(Missing(Model(name="sd15"), Shard(0, prompts), ("a",)))
    while len(task.quarantined) < 4:
        if task.is_trial:
            task.trial_survived()
        else:
            task.worker_died()
    assert set(task.quarantined) == {p.id for p in prompts}
