"""The search as a whole, on losses whose answer is known."""

import numpy as np
import pytest

from tgate_batch.plan_search.evidence import Limit
from tgate_batch.plan_search.expectation import most_images, prompts_for, smallest_provable
from tgate_batch.plan_search.search import Problem, State, find_plan

LIMIT = Limit("prompt_accuracy", 0.05, yes_no=True)
SAVINGS = np.linspace(0.1, 0.8, 8)
FEATURES = np.stack([SAVINGS, np.zeros(8)], axis=1)


class Prompts:
    """Losses of every plan, and the requests that were made. ``harmful``: plans that lose 20%."""

    def __init__(self, prompts=800, harmful=(6, 7), seed=0):
        rng = np.random.default_rng(seed)
        self.losses = np.where(rng.random((8, prompts)) < 0.01, 1.0, 0.0)
        for plan in harmful:
            self.losses[plan] = rng.random(prompts) < 0.2
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        return {
            plan: self.losses[None, plan, first:last]
            for plan, (first, last) in request.ranges.items()
        }


def problem(prompts=800, limits=(LIMIT,), block=25):
    ends = [*range(block, prompts, block), prompts]
    return Problem(SAVINGS, FEATURES, np.zeros(2), limits, ends)


def test_the_cheapest_plan_within_the_limit_is_recommended():
    prompts = Prompts()
    outcome = find_plan(problem(), prompts)
    assert outcome.recommended == 5
    assert outcome.plans[5].state is State.CONFIRMED
    assert {outcome.plans[plan].state for plan in (6, 7)} <= {
        State.DROPPED,
        State.NOT_CHOSEN,
        State.NOT_CONFIRMED,
    }
    assert prompts.losses[5].mean() <= outcome.bounds[0] <= 0.05
    value, low, high = outcome.plans[5].losses[0]
    assert low < value < high


def test_nothing_is_recommended_if_every_plan_is_harmful():
    outcome = find_plan(problem(), Prompts(harmful=range(8)))
    assert outcome.recommended is None
    assert outcome.bounds == ()


def test_the_confirmation_has_prompts_that_the_search_has_not_used():
    prompts = Prompts()
    outcome = find_plan(problem(), prompts)
    searched = [request for request in prompts.requests if request.chain is None]
    confirming = [request for request in prompts.requests if request.chain is not None]
    assert max(request.last for request in searched) == outcome.searched == 125
    firsts = [first for request in confirming for first, _ in request.ranges.values()]
    assert min(firsts) == outcome.searched
    assert {request.chain for request in confirming} == {outcome.chain}


def test_each_loss_is_asked_for_once_and_stages_end_where_they_may():
    prompts = Prompts()
    outcome = find_plan(problem(), prompts)
    asked = [
        (plan, prompt)
        for request in prompts.requests
        for plan, (first, last) in request.ranges.items()
        for prompt in range(first, last)
    ]
    assert len(asked) == len(set(asked))
    baseline = max(request.last for request in prompts.requests)
    assert outcome.images == len(asked) + baseline
    assert all(request.last % 25 == 0 for request in prompts.requests)


def test_the_same_losses_give_the_same_answer_and_the_same_requests():
    first, again = Prompts(), Prompts()
    assert find_plan(problem(), first) == find_plan(problem(), again)
    assert first.requests == again.requests


def test_other_losses_of_the_confirmation_do_not_change_the_chain():
    first, other = Prompts(), Prompts()
    other.losses[:, 125:] = 1.0
    one, two = find_plan(problem(), first), find_plan(problem(), other)
    assert one.chain == two.chain
    assert two.recommended is None


def test_a_plan_that_delivers_no_image_for_some_prompts_is_not_recommended():
    prompts = Prompts()
    prompts.losses[5, ::5] = np.nan
    outcome = find_plan(problem(), prompts)
    assert outcome.recommended == 4


def test_prompts_without_a_figure_of_the_baseline_are_left_out():
    prompts = Prompts()

    def ask(request):
        return {plan: x[:, ::2] for plan, x in prompts(request).items()}

    outcome = find_plan(problem(), ask)
    assert outcome.recommended == 5


def test_of_several_limits_each_has_to_be_kept():
    prompts = Prompts(harmful=())
    score = np.random.default_rng(1).normal(SAVINGS[:, None], 0.2, (8, 800))

    def ask(request):
        first = prompts(request)
        spans = request.ranges.items()
        return {p: np.stack([first[p][0], score[p, begin:end]]) for p, (begin, end) in spans}

    limits = (LIMIT, Limit("clip_score", 0.35, yes_no=False))  # plan 2 loses 0.3, plan 3 0.4
    outcome = find_plan(problem(limits=limits), ask)
    assert outcome.recommended == 2
    assert outcome.bounds[0] <= 0.05
    assert 0.3 < outcome.bounds[1] <= 0.35


def test_at_a_limit_of_0_only_a_gain_is_confirmed():
    limit = Limit("prompt_accuracy", 0.0, yes_no=True)
    unchanged = Prompts()
    unchanged.losses[:] = 0.0
    assert find_plan(problem(limits=(limit,)), unchanged).recommended is None
    better = Prompts(harmful=range(8))
    better.losses[:4] *= -1  # these gain on 20% of the prompts
    assert find_plan(problem(limits=(limit,)), better).recommended == 3


@pytest.mark.parametrize("prompts", [1, 20, 30, 44])
def test_too_few_prompts_confirm_nothing(prompts):
    outcome = find_plan(problem(prompts), Prompts(prompts, harmful=()))
    assert outcome.recommended is None
    assert outcome.confirmed == 0


def test_a_score_is_not_judged_on_fewer_than_50_prompts():
    score = Limit("clip_score", 0.5, yes_no=False)
    few = find_plan(problem(70, (score,)), Prompts(70, harmful=()))
    assert few.recommended is None
    assert find_plan(problem(100, (score,)), Prompts(100, harmful=())).recommended is not None


def test_without_plans_there_is_nothing_to_search():
    nothing = Problem(np.empty(0), np.empty((0, 2)), np.zeros(2), (LIMIT,), [10])
    assert find_plan(nothing, Prompts()).recommended is None


@pytest.mark.parametrize("harmful", [(), (6, 7), range(8), range(0, 8, 2)])
@pytest.mark.parametrize("prompts", [60, 400, 800])
def test_a_search_needs_no_more_images_than_its_largest_number(harmful, prompts):
    outcome = find_plan(problem(prompts), Prompts(prompts, harmful))
    assert outcome.images <= most_images(problem(prompts))


def test_one_plan_needs_at_most_all_images():
    one = Problem(SAVINGS[:1], FEATURES[:1], np.zeros(2), (LIMIT,), [25, 50, 100])
    assert most_images(one) == 200  # of the plan and of the baseline


def test_what_prompts_can_prove_falls_with_their_number():
    few, many = (smallest_provable(problem(n), yes_no=True) for n in (100, 1000))
    assert few[0] > many[0]
    assert few[1] > many[1]
    left = 1000 - 150
    assert many[1] == pytest.approx(1.75 * np.sqrt(0.08 / left))
    assert many[0] == pytest.approx(3.05 / left, rel=0.02)  # the rule of three


def test_the_number_of_prompts_that_a_limit_needs_proves_it():
    prompts = prompts_for(LIMIT)
    assert smallest_provable(problem(prompts, block=1), yes_no=True)[1] == pytest.approx(
        0.05, rel=0.05
    )
