"""Prepares a plan search: the plans of a config's pipeline, their MACs, and the prompts to use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil

import numpy as np

from tgate_batch.config import (
    Arm,
    Config,
    FindPlan,
    Model,
    Prompts,
    ResolvedSampling,
    Thresholds,
    effective_sampling,
)
from tgate_batch.errors import Problems, UserError
from tgate_batch.models import schedulers
from tgate_batch.models.resolve import resolve_model, resolve_sampling
from tgate_batch.output.run import Run, prompts_a_batch
from tgate_batch.plan_search.candidates import (
    FAMILIES,
    candidates,
    features_of,
    name_of,
    thin,
)
from tgate_batch.plan_search.expectation import (
    expected,
    most_images,
    prompts_for,
    smallest_provable,
)
from tgate_batch.plan_search.search import FIRST, Outcome, Problem
from tgate_batch.prompts.reader import count, shard_sizes
from tgate_batch.report.frontier import Searched
from tgate_batch.score.plan_losses import LossFigure, loss_figures
from tgate_batch.storage import without_credentials

FEWEST = 60  # prompts of a budget
_BASELINE = "baseline"
_SAVINGS = (0.2, 0.4, 0.6)  # of the MACs


@dataclass(frozen=True)
class PlanSetup:
    """A search before it runs.

    ``config``: with the plans as arms, and shuffled prompts. ``macs``: of an image of the baseline,
    then of each plan.
    """

    config: Config
    model: Model
    sampling: ResolvedSampling
    baseline: str
    plans: Mapping[str, Arm]
    macs: Sequence[int]
    figures: Sequence[LossFigure]

    def problem(self, ends: Sequence[int]) -> Problem:
        """Returns what is searched; ``ends``: numbers of prompts at which a shard ends."""
        steps = self.sampling.steps
        return Problem(
            np.array([1 - macs / self.macs[0] for macs in self.macs[1:]]),
            np.array([features_of(arm, steps) for arm in self.plans.values()]),
            features_of(Arm(), steps),
            tuple(figure.limit for figure in self.figures),
            ends,
            self.config.find_plan.confidence,
        )

    def problem_of(self, run: Run) -> Problem:
        """Returns what is searched on a run's shards.

        Raises UserError if the prompts are of several kinds: shards are then no random samples.
        """
        kinds = list(run.batch_keys)
        if len(kinds) > 1 or kinds[0].steps is not None:
            raise UserError(
                "find-plan: the rows set their own size, steps or guidance, and a plan is for one "
                "setting. Fix: set prompts.columns: {steps: null, guidance_scale: null, height: "
                "null, width: null}, or search for each kind of rows"
            )
        return self.problem([*accumulate(shard.prompts for shard in run.shards)])

    def lines(self, problem: Problem) -> Iterator[str]:
        """Yields what the search will do, what it costs, and what its prompts can prove."""
        images = self.config.sampling.images_per_prompt
        cost = expected(problem)
        every = images * (len(self.plans) + 1) * problem.prompts
        yield (
            f"{len(self.plans)} plans on {problem.prompts:,} prompts: about "
            f"{images * cost.images:,.0f} images, at most {images * cost.most:,}, of {every:,} -> "
            f"{without_credentials(self.config.output)}"
        )
        work = images * cost.work
        savings = ", ".join(f"{work / saving:,.0f} if it saves {saving:.0%}" for saving in _SAVINGS)
        yield (
            f"the search does the work of about {work:,.0f} images of the baseline; the "
            f"recommended plan has saved that after so many images: {savings}"
        )
        for figure in self.figures:
            yield _provable(figure, problem)
        if work / max(problem.savings) > (size := images * self._set_size()):
            yield (
                f"this run is too small for a search: its {size:,} images are fewer than those in "
                "which any plan saves what the search costs"
            )

    def _set_size(self) -> int:
        """The prompts of the set, of which the search may use a part."""
        return count(self.config.prompts.model_copy(update={"limit": None}))

    def searched(self, outcome: Outcome, prompts: int, earlier: int) -> Searched:
        """Returns what was searched, for its report."""
        return Searched(
            self.model.name,
            self.plans,
            self.macs,
            self.figures,
            self.config.find_plan.confidence,
            prompts,
            self.config.sampling.images_per_prompt,
            outcome,
            earlier,
        )

    def recommended(self, config: Config, plan: str | None) -> Config:
        """Returns ``config`` with the baseline and the recommended plan alone.

        Its prompts are those of the search, so that images of the search are used again.
        """
        names = [self.baseline] if plan is None else [self.baseline, plan]
        arms = {name: self.config.arms[name] for name in names}
        update = {"arms": arms, "prompts": self.config.prompts, "find_plan": FindPlan()}
        return config.model_copy(update=update)


def _provable(figure: LossFigure, problem: Problem) -> str:
    """What the prompts can prove of a figure."""
    limit = figure.limit
    none, some = smallest_provable(problem, limit.yes_no)
    if not np.isfinite(some):
        return f"{limit.figure}: {problem.prompts} prompts are too few to confirm a plan"
    line = f"{limit.figure}: the smallest loss that these prompts can prove of a harmless plan is "
    if not limit.yes_no:
        return f"{line}{some:.2g} standard deviations of a prompt's loss, which the search measures"
    line += f"{none:.2g} if it changes no image, {some:.2g} if 8% of the images change"
    if limit.at_most < some and (needed := prompts_for(limit)) is not None:
        line += f"; {limit.at_most:g} then needs about {needed:,} prompts"
    return line


def set_up(config: Config, limits: Mapping[str, float], budget: int | None = None) -> PlanSetup:
    """Returns the search of a config; ``budget``: the most images that it may render.

    Raises UserError for a config without a limit, with several models or unknown families, for a
    plan that the pipeline refuses, and for a budget that is too small.
    """
    limits = {**config.find_plan.limits, **limits}
    if not limits:
        raise UserError(
            "find-plan: no limit is given. Fix: --lose-at-most 'FIGURE NUMBER', e.g. "
            "'clip_score 0.2', or find_plan.limits"
        )
    if len(config.models) != 1:
        raise UserError(
            f"find-plan: the config has {len(config.models)} models, and a plan is found for one. "
            "Fix: keep one in models"
        )
    figures = loss_figures(config, limits)
    (model,) = config.models
    pipeline = _Pipeline(model, resolve_sampling(model, config.sampling))
    plans = {name: arm for name, arm in _plans(config, pipeline).items() if pipeline.saves(arm)}
    if not plans:
        raise UserError(
            "find-plan: no plan saves MACs with this model and these settings. Fix: give other "
            "find_plan.plans or find_plan.families"
        )
    names = (config.baseline, _BASELINE, "no-plan")
    baseline = next(name for name in names if name is not None and name not in plans)
    arms = {baseline: Arm(), **plans}
    setup = PlanSetup(
        config.model_copy(
            update={
                "arms": arms,
                "prompts": _prompts(config),
                "find_plan": config.find_plan.model_copy(update={"limits": limits}),
                "score": config.score.model_copy(update={"reference": None}),
                "thresholds": Thresholds(),
            }
        ),
        model,
        pipeline.sampling,
        baseline,
        plans,
        [pipeline.macs(arm) for arm in arms.values()],
        figures,
    )
    return setup if budget is None else _within(setup, budget)


def _prompts(config: Config) -> Prompts:
    """The prompts in a random order, in shards as small as a stage of the search."""
    spec, batch = config.prompts, prompts_a_batch(config)
    limits = [one for one in (config.find_plan.prompts, spec.limit) if one is not None]
    return spec.model_copy(
        update={
            "shuffle": config.sampling.seed if spec.shuffle is None else spec.shuffle,
            "limit": min(limits, default=None),
            "shard_size": min(spec.shard_size, ceil(FIRST / batch) * batch),
        }
    )


class _Pipeline:
    """What a model supports with its settings, and the MACs of its arms, each counted once."""

    def __init__(self, model: Model, sampling: ResolvedSampling):
        self.sampling = sampling
        self._model = model
        self._counted: dict[str, int] = {}

    def macs(self, arm: Arm) -> int:
        """Returns the MACs of one image; raises UserError if the pipeline refuses the arm."""
        from tgate_batch.models.macs.arm import macs_of_arm  # imports torch

        key = str(arm.settings)
        if key not in self._counted:
            counted = macs_of_arm(self._model, arm, self.sampling)
            self._counted[key] = counted.per_image_with_attention
        return self._counted[key]

    def saves(self, arm: Arm) -> bool:
        """True if the arm needs fewer MACs than the baseline."""
        return self.macs(arm) < self.macs(Arm())

    def refusals(self, name: str, arm: Arm) -> list[str]:
        """Returns why the pipeline refuses an arm; nothing if it does not."""
        resolved = resolve_model(self._model)
        problems = list(schedulers.refusals(self._model, resolved, self.sampling, {name: arm}))
        try:
            if arm.combined_plan is not None:
                arm.combined_plan.check(effective_sampling(self.sampling, arm).steps_run)
            self.macs(arm)
        except (UserError, ValueError) as error:
            problems.append(f"find_plan.plans: {name}: {error}")
        return problems


def _plans(config: Config, pipeline: _Pipeline) -> dict[str, Arm]:
    """The plans to search, by name: those of the config, else also a grid over the families.

    Raises UserError for a plan of the config that the pipeline refuses.
    """
    plans = {name: arm for name, arm in config.arms.items() if not arm.is_baseline}
    plans |= {name_of(arm): arm for arm in config.find_plan.plans if not arm.is_baseline}
    problems = Problems()
    for name, arm in plans.items():
        problems.add(*pipeline.refusals(name, arm))
    problems.raise_if_any()
    if not config.find_plan.plans:
        known = {str(arm.settings) for arm in plans.values()}
        grid = _grid(config.find_plan.families, pipeline).items()
        new = {name: arm for name, arm in grid if str(arm.settings) not in known}
        plans = new | plans
    return plans


def _grid(families: Sequence[str], pipeline: _Pipeline) -> dict[str, Arm]:
    if unknown := [name for name in families if name not in FAMILIES]:
        raise UserError(
            f"find_plan.families: unknown family {unknown[0]!r}. Fix: use one of "
            f"{', '.join(FAMILIES)}"
        )
    steps = pipeline.sampling.steps
    arms = [
        arm
        for arm in candidates(steps, families or tuple(FAMILIES))
        if not pipeline.refusals(name_of(arm), arm) and pipeline.saves(arm)
    ]
    kept = thin(arms, np.array([features_of(arm, steps) for arm in arms]))
    return {name_of(arms[place]): arms[place] for place in kept}


def _within(setup: PlanSetup, budget: int) -> PlanSetup:
    """The search on as many prompts as the budget allows."""
    spec = setup.config.prompts
    images, batch = setup.config.sampling.images_per_prompt, prompts_a_batch(setup.config)

    def most(prompts: int) -> int:
        sizes = shard_sizes(prompts, spec.shard_size, batch)
        return images * most_images(setup.problem([*accumulate(sizes)]))

    every = count(spec)
    if most(every) <= budget:
        return setup
    if every < FEWEST or most(FEWEST) > budget:
        raise UserError(
            f"--budget-images {budget:,} is too small: a search on {min(FEWEST, every)} prompts "
            f"with {len(setup.plans)} plans may take {most(min(FEWEST, every)):,} images. Fix: "
            "allow more, or give fewer find_plan.plans"
        )
    low, high = FEWEST, every
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if most(middle) <= budget else (low, middle)
    prompts = spec.model_copy(update={"limit": low})
    config = setup.config.model_copy(update={"prompts": prompts})
    return replace(setup, config=config)
