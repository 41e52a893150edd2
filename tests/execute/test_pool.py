"""The pool is simulated: events in, decisions out, no process anywhere."""

import itertools
import random
from types import SimpleNamespace

import pytest

from tgate_batch.config import Model, Workers
from tgate_batch.execute.pool import GiveUp, Pool, Send, SetAside, workers_wanted
from tgate_batch.execute.task import LIVES, MeasureTask, RenderTask
from tgate_batch.output.frozen import ShardPlan
from tgate_batch.score.measure import MeasureOrder

MODEL = Model(name="sd15")


def task(index=0, prompts=4, arms=("a",)) -> RenderTask:
    return RenderTask(MODEL, ShardPlan(index, prompts, "d", 0, 0), dict.fromkeys(arms, "i"))


def pool_of(count, workers=("w",), **options) -> tuple[Pool, list[RenderTask]]:
    tasks = [task(index) for index in range(count)]
    pool = Pool(tasks, count, **options)
    for worker in workers:
        pool.joined(worker)
    return pool, tasks


def sent(pool) -> list[tuple[str, int]]:
    return [(d.worker, d.task.shard.index) for d in pool.decide() if isinstance(d, Send)]


def test_workers_are_fed_in_turns_and_hold_two_tasks_at_most():
    pool, _ = pool_of(5, ("v", "w"))
    assert sent(pool) == [("v", 0), ("w", 1), ("v", 2), ("w", 3)]
    assert sent(pool) == []


def test_pool_is_done_when_every_task_is_over():
    pool, tasks = pool_of(1)
    pool.decide()
    assert not pool.is_done
    pool.finished("w", tasks[0])
    assert pool.is_done


def test_task_of_a_dead_worker_goes_to_another():
    pool, _ = pool_of(1, ("v", "w"))
    assert sent(pool) == [("v", 0)]
    pool.died("v")
    assert sent(pool) == [("w", 0)]


def test_two_tasks_of_a_dead_worker_are_both_innocent_and_run_alone():
    pool, tasks = pool_of(2)
    pool.decide()
    pool.died("w")
    assert [t.deaths for t in tasks] == [0, 0]
    pool.joined("x")
    assert sent(pool) == [("x", 0)]
    assert sent(pool) == []


def test_failed_task_avoids_its_worker_while_there_is_another():
    pool, tasks = pool_of(1, ("v", "w"))
    assert sent(pool) == [("v", 0)]
    pool.failed("v", tasks[0], "disk full")
    assert sent(pool) == [("w", 0)]


def test_failed_task_returns_to_the_only_worker():
    pool, tasks = pool_of(1)
    pool.decide()
    pool.failed("w", tasks[0], "disk full")
    assert sent(pool) == [("w", 0)]


def test_task_is_given_up_after_three_failures_with_the_last_reason():
    pool, tasks = pool_of(1, ("u", "v", "w"))
    for attempt in range(LIVES):
        ((worker, _),) = sent(pool)
        pool.failed(worker, tasks[0], f"reason {attempt}")
    assert pool.decide() == [GiveUp(tasks[0], "reason 2")]
    assert pool.is_done


def test_worker_that_fails_at_everything_is_set_aside():
    pool, tasks = pool_of(6, ("bad", "good"), in_flight=1)
    decided = []
    while SetAside("bad") not in decided:
        decided = pool.decide()
        for held in pool.held("bad"):
            pool.failed("bad", held, "broken driver")
    pool.joined("fresh")
    while not pool.is_done:
        pool.decide()
        for worker in ("good", "fresh"):
            for held in pool.held(worker):
                pool.finished(worker, held)
    assert all(t.errors <= 1 for t in tasks)


def test_worker_that_left_on_purpose_blames_nothing():
    pool, tasks = pool_of(1, ("v", "w"))
    pool.decide()
    pool.left_by("v")
    assert (tasks[0].deaths, tasks[0].errors, tasks[0].alone) == (0, 0, False)
    assert sent(pool) == [("w", 0)]


def test_deadly_measurement_is_given_up_and_the_others_go_on():
    orders = [MeasureOrder(ShardPlan(i, 1, "d", 0, 0), {}, None) for i in range(2)]
    tasks = [MeasureTask(MODEL, order) for order in orders]
    pool = Pool(tasks, 2, in_flight=1)
    given_up = []
    for number in itertools.count():
        if pool.is_done:
            break
        pool.joined(str(number))
        for decision in pool.decide():
            if isinstance(decision, GiveUp):
                given_up.append(decision.task)
        for held in pool.held(str(number)):
            if held is tasks[0]:
                pool.died(str(number))
            else:
                pool.finished(str(number), held)
        pool.left_by(str(number))
    assert given_up == [tasks[0]]


@pytest.mark.parametrize("count", range(1, 10))
def test_prompt_that_kills_its_worker_is_found_and_no_other_is_blamed(count):
    for poison in itertools.chain.from_iterable(
        itertools.combinations(range(count), size) for size in (1, 2)
    ):
        one = task(prompts=count)
        for _ in range(100):
            order = one.order()
            on_device = range(count) if order.only is None else order.only
            if any(p in poison and p not in order.quarantined for p in on_device):
                one.worker_died()
            elif one.finished():
                break
        assert set(one.quarantined) == set(poison)


def test_shard_that_dies_without_a_guilty_prompt_ends_as_error_rows():
    one = task(prompts=4)
    while len(one.quarantined) < 4:
        if one.is_trial:
            one.finished()
        else:
            one.worker_died()
    assert set(one.order().quarantined) == {0, 1, 2, 3}


def test_arm_that_was_delivered_is_not_rendered_again():
    one = task(arms=("a", "b"))
    assert one.delivered(SimpleNamespace(arm="a"))
    one.worker_died()
    assert list(one.order().identities) == ["b"]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_task_is_over_once(seed):
    random_ = random.Random(seed)
    pool, tasks = pool_of(12, ("0", "1", "2"))
    over, names = [], itertools.count(3)
    for _ in range(5000):
        if pool.is_done:
            break
        over += [d.task for d in pool.decide() if isinstance(d, GiveUp)]
        workers = [w for w in list(pool._held) if pool.held(w)]
        if not workers:
            pool.joined(str(next(names)))
            continue
        worker = random_.choice(workers)
        event = random_.choice(["finished"] * 5 + ["died", "failed", "left"])
        held = pool.held(worker)[0]
        if event == "finished":
            before = pool.left
            pool.finished(worker, held)
            over += [held] * (before - pool.left)
        elif event == "failed":
            pool.failed(worker, held, "bad luck")
        elif event == "died":
            pool.died(worker)
            pool.joined(str(next(names)))
        else:
            pool.left_by(worker)
            pool.joined(str(next(names)))
    assert pool.is_done
    assert sorted(t.shard.index for t in over) == [t.shard.index for t in tasks]


@pytest.mark.parametrize(
    ("limits", "room", "left", "wanted"),
    [
        ({}, 4, 100, 4),
        ({}, 4, 2, 2),
        ({"max": 2}, 4, 100, 2),
        ({"max": 8}, 4, 100, 8),  # Ray waits for a cluster that grows
        ({"min": 3}, 1, 100, 3),
        ({}, 4, 0, 0),
    ],
)
def test_as_many_workers_as_are_useful_and_allowed(limits, room, left, wanted):
    assert workers_wanted(Workers(**limits), room, left) == wanted
