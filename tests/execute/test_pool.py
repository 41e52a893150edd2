"""The pool is simulated: events in, decisions out, no process anywhere."""

import itertools
import random

import pytest

from tgate_batch.config import Model, Workers
from tgate_batch.execute.pool import GiveUp, Pool, ReplaceWorker, Send, Stop, workers_wanted
from tgate_batch.execute.task import LIVES, MeasureTask, RenderTask
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.records import ShardProgress
from tgate_batch.score.measure import MeasureOrder

MODEL = Model(name="sd15")


def task(index=0, prompts=4, arm="a") -> RenderTask:
    return RenderTask(MODEL, ShardPlan(index, prompts, "d", 0, 0), arm, "i")


def pool_of(count, workers=("w",), **options) -> tuple[Pool, list[RenderTask]]:
    tasks = [task(index) for index in range(count)]
    pool = Pool(([one] for one in tasks), count, **options)
    for worker in workers:
        pool.joined(worker)
    return pool, tasks


def groups_of(count, arms) -> Pool:
    """A pool of ``count`` shards, each under these arms."""
    groups = ([task(index, arm=arm) for arm in arms] for index in range(count))
    return Pool(groups, count * len(arms))


def sent(pool) -> list[tuple[str, int]]:
    return [(d.worker, d.task.shard.index) for d in pool.decide() if isinstance(d, Send)]


def test_workers_are_fed_in_turns_and_hold_two_tasks_at_most():
    pool, _ = pool_of(9, ("v", "w"))
    assert sent(pool) == [("v", 0), ("w", 1), ("v", 2), ("w", 3)]
    assert sent(pool) == []


def test_arms_of_a_shard_go_to_the_worker_that_began_it():
    pool = groups_of(4, "abc")
    for worker in ("v", "w"):
        pool.joined(worker)
    assert sent(pool) == [("v", 0), ("w", 1), ("v", 0), ("w", 1)]
    pool.finished("v", pool.tasks_of("v")[0])
    assert sent(pool) == [("v", 0)]


def test_idle_worker_takes_over_what_another_has_not_come_to():
    pool = groups_of(1, "abc")
    pool.joined("v")
    assert [d.task.arm for d in pool.decide()] == ["a"]
    pool.joined("w")
    assert [(d.worker, d.task.arm) for d in pool.decide()] == [("w", "c")]


def test_last_tasks_wait_for_whoever_is_free_first():
    pool, _ = pool_of(3, ("v", "w"))
    assert sent(pool) == [("v", 0), ("w", 1)]
    pool.finished("w", pool.tasks_of("w")[0])
    assert sent(pool) == [("w", 2)]


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
    pool, tasks = pool_of(5)
    pool.decide()
    pool.died("w")
    assert [t.deaths for t in tasks[:2]] == [0, 0]
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
    pool, tasks = pool_of(4, ("u", "v", "w"))
    for worker, index in sent(pool):
        pool.finished(worker, tasks[index])
    for attempt in range(LIVES):
        ((worker, _),) = sent(pool)
        pool.failed(worker, tasks[3], f"reason {attempt}")
    assert pool.decide() == [GiveUp(tasks[3], "reason 2")]
    assert pool.is_done


def test_task_is_not_blamed_by_workers_that_never_did_anything():
    pool, tasks = pool_of(2, ("bad", "worse"), in_flight=1)
    for _ in range(2 * LIVES):
        for decision in pool.decide():
            if isinstance(decision, Send):
                pool.failed(decision.worker, decision.task, "broken driver")
    pool.joined("good")
    while not pool.is_done:
        for decision in pool.decide():
            assert not isinstance(decision, GiveUp)
        for held in pool.tasks_of("good"):
            pool.finished("good", held)
    assert [task.errors for task in tasks] == [0, 0]


def test_broken_task_is_given_up_by_the_only_worker_after_all_others():
    pool, tasks = pool_of(3, in_flight=1)
    decided = []
    while not pool.is_done:
        decided += pool.decide()
        for held in pool.tasks_of("w"):
            if held is tasks[0]:
                pool.failed("w", held, "bad shard")
            else:
                pool.finished("w", held)
    assert GiveUp(tasks[0], "bad shard") in decided
    assert not any(isinstance(decision, Stop) for decision in decided)
    assert [t.done or t.errors for t in tasks] == [LIVES, 0, 0]


def test_worker_that_fails_at_everything_is_set_aside():
    pool, tasks = pool_of(6, ("bad", "good"), in_flight=1)
    decided = []
    while ReplaceWorker("bad", "broken driver") not in decided:
        decided = pool.decide()
        for held in pool.tasks_of("bad"):
            pool.failed("bad", held, "broken driver")
    pool.joined("fresh")
    while not pool.is_done:
        pool.decide()
        for worker in ("good", "fresh"):
            for held in pool.tasks_of(worker):
                pool.finished(worker, held)
    assert all(t.errors <= 1 for t in tasks)


def test_what_a_worker_delivered_before_it_died_is_not_done_again():
    pool, (one,) = pool_of(1)
    pool.decide()
    pool.delivered("w", one, ShardProgress("sd15", "a", 0, 3))
    assert not one.done
    assert pool.delivered("w", one, "a receipt")
    pool.died("w")
    assert pool.is_done


def test_worker_that_left_on_purpose_blames_nothing():
    pool, tasks = pool_of(1, ("v", "w"))
    pool.decide()
    pool.left_by("v")
    assert (tasks[0].deaths, tasks[0].errors, tasks[0].alone) == (0, 0, False)
    assert sent(pool) == [("w", 0)]


def test_deadly_measurement_is_given_up_and_the_others_go_on():
    orders = [MeasureOrder(ShardPlan(i, 1, "d", 0, 0), {}, None) for i in range(2)]
    tasks = [MeasureTask(MODEL, order) for order in orders]
    pool = Pool.of(tasks)
    pool.in_flight = 1
    given_up = []
    for number in itertools.count():
        if pool.is_done:
            break
        pool.joined(str(number))
        for decision in pool.decide():
            if isinstance(decision, GiveUp):
                given_up.append(decision.task)
        for held in pool.tasks_of(str(number)):
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
                one.worker_died("it died")
            elif one.finished():
                break
        assert set(one.quarantined) == set(poison)


def test_shard_that_dies_without_a_guilty_prompt_ends_as_error_rows():
    one = task(prompts=4)
    while len(one.quarantined) < 4:
        if one.is_trial:
            one.finished()
        else:
            one.worker_died("it died")
    assert set(one.order().quarantined) == {0, 1, 2, 3}


def test_worker_that_says_nothing_hangs_and_its_task_goes_to_another():
    pool, (one,) = pool_of(1, ("v", "w"), patience=60.0)
    assert sent(pool) == [("v", 0)]
    pool.tick(60.0)
    assert pool.decide() == []
    pool.tick(61.0)
    assert pool.decide() == [
        ReplaceWorker("v", "the worker reported nothing for 60 s"),
        Send("w", one),
    ]


def test_worker_that_says_something_now_and_then_does_not_hang():
    pool, (one,) = pool_of(1, patience=60.0)
    pool.decide()
    for now in range(0, 600, 50):
        pool.tick(now)
        pool.delivered("w", one, "a beat")
    assert pool.tasks_of("w") == (one,)


def test_slow_pace_lengthens_the_patience():
    pool, (one,) = pool_of(1, patience=60.0)
    pool.decide()
    for now in (10, 20, 30):  # a word each 10 s: 200 s are still no reason
        pool.tick(now)
        pool.delivered("w", one, "a beat")
    pool.tick(30 + 200)
    assert pool.tasks_of("w") == (one,)
    pool.tick(30 + 201)
    assert pool.tasks_of("w") == ()


def test_prompt_that_hangs_each_time_becomes_a_row():
    pool, (one,) = pool_of(1, (), patience=10.0)
    now = 0.0
    for number in range(100):
        pool.joined(str(number))
        pool.decide()
        order = one.order()
        if 2 in (order.only or (0, 1, 2, 3)) and 2 not in order.quarantined:
            pool.tick(now := now + 11)
        else:
            pool.finished(str(number), one)
            pool.left_by(str(number))
        if pool.left == 0:
            break
    assert one.quarantined == {2: "the worker reported nothing for 10 s, each time on this prompt"}


def test_all_wait_twice_as_long_each_time_the_storage_is_away():
    pool, _ = pool_of(2, in_flight=1)
    pauses, now = [], 0
    for _ in range(8):
        (decision,) = pool.decide()
        pool.failed("w", decision.task, "OSError: away", storage=True)
        began = now
        while not (found := pool.decide()):
            pool.tick(now := now + 1)
        pool.left_by("w")  # gives the task back
        pool.joined("w")
        assert isinstance(found[0], Send)
        pauses.append(now - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_full_disk_stops_the_run_at_the_third_pause_and_is_named_meanwhile():
    pool, _ = pool_of(2, in_flight=1)
    full, now, said = "out cannot be written: No space left on device", 0.0, []
    while not said:
        pool.tick(now := now + 1.0)
        for decision in pool.decide():
            if isinstance(decision, Send):
                pool.failed("w", decision.task, full, storage=True, lasting=True)
                assert pool.waits_for == f"waiting: {full}"
            else:
                said.append(str(decision))
    assert said == [full]
    assert now < 10


def test_storage_that_stays_away_stops_the_run():
    pool, _ = pool_of(4, ("v", "w"), in_flight=1)
    for now in range(1000):
        pool.tick(now)
        decisions = pool.decide()
        if Stop("OSError: full") in decisions:
            break
        for decision in decisions:
            if isinstance(decision, Send):
                pool.failed(decision.worker, decision.task, "OSError: full", storage=True)
    assert now == 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60 + 60 + 1  # at the next look after the tenth


def test_worker_whose_disk_alone_is_full_is_replaced():
    pool, _ = pool_of(20, ("bad", "good"), in_flight=1)
    replaced = []
    for now in range(200):
        pool.tick(now)
        for decision in pool.decide():
            if isinstance(decision, ReplaceWorker):
                replaced.append(decision.worker)
            elif isinstance(decision, Send) and decision.worker == "bad":
                pool.failed("bad", decision.task, "OSError: full", storage=True)
        for held in pool.tasks_of("good"):
            pool.finished("good", held)
    assert replaced == ["bad"]
    assert pool.is_done


def test_workers_that_fail_at_everything_one_after_another_stop_the_run():
    pool, _ = pool_of(100, in_flight=1)
    for number in itertools.count():
        decisions = pool.decide()
        if Stop("broken driver") in decisions:
            break
        if any(isinstance(decision, ReplaceWorker) for decision in decisions):
            pool.joined(str(number))
        for worker in list(pool._workers):
            for held in pool.tasks_of(worker):
                pool.failed(worker, held, "broken driver")
    assert number < 20


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_task_is_over_once(seed):
    random_ = random.Random(seed)
    pool, tasks = pool_of(12, ("0", "1", "2"))
    over, names = [], itertools.count(3)
    for _ in range(5000):
        if pool.is_done:
            break
        decided = pool.decide()
        over += [d.task for d in decided if isinstance(d, GiveUp)]
        if any(isinstance(d, ReplaceWorker | Stop) for d in decided):
            pool.joined(str(next(names)))
        workers = [w for w in list(pool._workers) if pool.tasks_of(w)]
        if not workers:
            pool.joined(str(next(names)))
            continue
        worker = random_.choice(workers)
        event = random_.choice(["finished"] * 5 + ["died", "failed", "left"])
        held = pool.tasks_of(worker)[0]
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
    ("limits", "left", "wanted"),
    [({}, 100, 100), ({"max": 2}, 100, 2), ({"max": 8}, 3, 3), ({"min": 3}, 1, 1), ({}, 0, 0)],
)
def test_as_many_workers_as_are_useful_and_allowed(limits, left, wanted):
    assert workers_wanted(Workers(**limits), left) == wanted


def test_a_task_is_not_blamed_where_its_machine_ran_out_of_memory():
    pool, tasks = pool_of(1)
    for life in range(2 * LIVES):
        if life:
            pool.joined(f"w{life}")
        ((worker, _),) = sent(pool)
        pool.killed_for_memory(worker, crowded=True)
    assert (tasks[0].deaths, tasks[0].errors, tasks[0].quarantined) == (0, 0, {})
    assert pool.deaths == 2 * LIVES
    assert pool.memory_kills_in_a_row == 0
    pool.joined("x")
    assert sent(pool) == [("x", 0)]


def test_workers_ended_alone_for_memory_are_counted_until_a_task_is_finished():
    pool, tasks = pool_of(2)
    for kills in range(5):
        if kills:
            pool.joined(f"w{kills}")
        assert pool.memory_kills_in_a_row == kills
        ((worker, _),) = sent(pool)
        pool.killed_for_memory(worker, crowded=False)
    pool.joined("x")
    assert sent(pool) == [("x", 0)]
    pool.finished("x", tasks[0])
    assert pool.memory_kills_in_a_row == 0


def test_what_a_worker_delivered_before_it_was_ended_for_memory_is_kept():
    pool, tasks = pool_of(1)
    sent(pool)
    assert pool.delivered("w", tasks[0], "a receipt")
    pool.killed_for_memory("w", crowded=False)
    assert pool.left == 0
