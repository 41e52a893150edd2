"""Runs a plan search on a run's arms: each stage renders and measures some arms on some shards.

The arms are those of the run, with its shards, seeds, identities and workers. A killed search goes
on with what its output has: every decision follows from the measurements, so it ends alike.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from tgate_batch import console
from tgate_batch.errors import UserError
from tgate_batch.output import layout, seal, shapes
from tgate_batch.output.error_rows import allowed
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Pending, Prepared, finished
from tgate_batch.plan_search.search import Outcome, Problem, Request, find_plan
from tgate_batch.score.plan_losses import PlanLosses

# Renders what is pending of a stage's run and measures its images. Raises SearchStopped.
Deliver = Callable[[Prepared, Pending], None]


class SearchStopped(Exception):
    """A stage could not be completed; the images that exist stay."""


@dataclass
class PlanFinder:
    """One search. ``names``: the arms that are the problem's plans, in its order."""

    run: Prepared
    problem: Problem
    names: tuple[str, ...]
    losses: PlanLosses
    deliver: Deliver
    earlier: int = 0  # searches of another kind that were confirmed on these prompts

    def find(self) -> Outcome:
        """Searches and confirms.

        Raises SearchStopped, and UserError if the measurements are not those that a chain was
        chosen by.
        """
        confirmed = [entry["id"] for entry in self._searches()]
        own = confirmed.index(self.identity) if self.identity in confirmed else len(confirmed)
        self.earlier = own
        if self.earlier:
            console.warning(
                f"these prompts confirmed {self.earlier} other search"
                f"{'es' if self.earlier > 1 else ''} before, so the promised confidence does not "
                "hold for this one. Fix: search on other prompts (another prompts.shuffle or "
                "prompts.offset) in a new output"
            )
        return find_plan(self.problem, self._ask)

    def time_saved(self, outcome: Outcome) -> float | None:
        """Returns the share of the baseline's time per image that the recommended plan saves.

        Both are measured on the same prompts. None if no plan is recommended.
        """
        if outcome.recommended is None:
            return None
        name, baseline = self.names[outcome.recommended], self.losses.baseline
        model, done = self.losses.model, finished(self.run)
        shards = done[model, name] & done[model, baseline]
        both = [shard for shard in self.run.shards if shard.index in shards]
        theirs = self.losses.seconds_per_image(baseline, both)
        own = self.losses.seconds_per_image(name, both)
        return None if not theirs or own is None else 1 - own / theirs

    @property
    def identity(self) -> str:
        """One digest of what is searched: limits, plans, prompts, and the images."""
        arms = {name: self.run.config.arms[name].settings for name in self.names}
        limits = {limit.figure: limit.at_most for limit in self.problem.limits}
        return layout.identity(
            {
                "limits": limits,
                "confidence": self.problem.confidence,
                "arms": arms,
                "shards": [shard.digest for shard in self.run.shards],
                "model": self.losses.model,
            }
        )

    def _ask(self, request: Request) -> Mapping[int, np.ndarray]:
        if request.chain is not None:
            self._fix(request.chain)
        self._announce(request)
        wanted = self._wanted(request)
        stage = self._stage(wanted)
        self.deliver(stage, self._pending(stage, wanted))
        self._check_baseline(request.last)
        return {
            plan: np.concatenate(
                [self.losses.of(self.names[plan], shard) for shard in self._shards(*span)], axis=1
            )
            for plan, span in request.ranges.items()
        }

    def _announce(self, request: Request) -> None:
        what = "search" if request.chain is None else "confirmation"
        images = self.run.config.sampling.images_per_prompt
        count = images * sum(last - first for first, last in request.ranges.values())
        plans = len(request.ranges)
        console.info(
            f"{what}: {plans} plan{'s' if plans != 1 else ''} up to prompt {request.last:,} of "
            f"{self.problem.prompts:,}: {count:,} images, and the baseline's",
            event="stage",
            stage=what,
            plans=[self.names[plan] for plan in request.ranges],
            prompts=request.last,
        )

    def _shards(self, first: int, last: int) -> list[ShardPlan]:
        """The shards of the prompts first..last-1, which begin and end with a shard."""
        ends = accumulate(shard.prompts for shard in self.run.shards)
        return [
            shard for shard, end in zip(self.run.shards, ends, strict=True) if first < end <= last
        ]

    def _wanted(self, request: Request) -> dict[int, tuple[str, ...]]:
        """Shard -> the arms that the request needs there, the baseline first."""
        baseline = self.losses.baseline
        wanted: dict[int, tuple[str, ...]]
        wanted = {shard.index: (baseline,) for shard in self._shards(0, request.last)}
        for plan, span in request.ranges.items():
            for shard in self._shards(*span):
                wanted[shard.index] += (self.names[plan],)
        return wanted

    def _stage(self, wanted: Mapping[int, tuple[str, ...]]) -> Prepared:
        """The run with the arms and shards of a stage alone."""
        arms = {name for names in wanted.values() for name in names}
        chosen = {name: arm for name, arm in self.run.config.arms.items() if name in arms}
        # A plan's errors count as lost; the baseline's are checked when the stage is measured.
        config = self.run.config.model_copy(update={"arms": chosen, "max_errors": None})
        shards = [shard for shard in self.run.shards if shard.index in wanted]
        return replace(self.run, config=config, shards=shards)

    def _pending(self, stage: Prepared, wanted: Mapping[int, tuple[str, ...]]) -> Pending:
        model, done = self.losses.model, finished(stage)
        missing = {
            index: tuple(arm for arm in arms if index not in done[model, arm])
            for index, arms in wanted.items()
        }
        return {model: {index: arms for index, arms in missing.items() if arms}}

    def _check_baseline(self, last: int) -> None:
        """Raises SearchStopped if the baseline, which plans are compared with, fails too often."""
        shards = self._shards(0, last)
        images = last * self.run.config.sampling.images_per_prompt
        failed = sum(self.losses.baseline_failures(shard) for shard in shards)
        if failed > allowed(self.run.config.max_errors, images):
            raise SearchStopped(
                f"{failed:,} of the baseline's {images:,} images failed, more than max_errors "
                "allows, so plans cannot be compared with it"
            )

    def _searches(self) -> list[dict[str, Any]]:
        content = shapes.read(self.run.folder, layout.SEARCHES, shapes.SearchesFile)
        return [] if content is None else list(content["searches"])

    def _fix(self, chain: tuple[int, ...]) -> None:
        """Writes the chain down before its confirmation; it never changes."""
        names = [self.names[plan] for plan in chain]
        searches = self._searches()
        known = next((entry for entry in searches if entry["id"] == self.identity), None)
        if known is None:
            limits = {limit.figure: limit.at_most for limit in self.problem.limits}
            entry = {"id": self.identity, "limits": limits, "chain": names}
            content = {"searches": [*searches, entry]}
            text = json.dumps(seal.with_seal(content), indent=1)
            self.run.folder.write(layout.SEARCHES, text)
            console.info(f"the plans to confirm, safest first: {', '.join(names)}", event="chain")
        elif known["chain"] != names:
            raise UserError(
                f"output {self.run.folder}: the search was to confirm {', '.join(known['chain'])}, "
                f"and its measurements now give {', '.join(names)}. Fix: search in a new output"
            )
