"""The result of a plan search: every plan with its MACs and loss, and the answer in a sentence."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import yaml

from tgate_batch.config import Arm, Config
from tgate_batch.output import layout, seal
from tgate_batch.output.run import shareable_config
from tgate_batch.plan_search.candidates import describe
from tgate_batch.plan_search.search import SEARCHED, Outcome
from tgate_batch.score.plan_losses import LossFigure
from tgate_batch.storage import Folder

_COMMENT = 98  # characters of a comment's line
_DIGITS = 6  # of the figures in frontier.json
_POWER = 2.93  # standard errors: a one-sided test at 5% with power 90%


@dataclass(frozen=True)
class Searched:
    """What was searched, and its outcome.

    ``macs``: of an image of the baseline, then of each plan. ``images``: per prompt. ``earlier``:
    searches with other limits or plans that were confirmed on these prompts before.
    """

    model: str
    plans: Mapping[str, Arm]
    macs: Sequence[int]
    figures: Sequence[LossFigure]
    confidence: float
    prompts: int
    images: int
    outcome: Outcome
    earlier: int

    @property
    def recommended(self) -> str | None:
        """The name of the recommended plan; None if none was confirmed."""
        place = self.outcome.recommended
        return None if place is None else list(self.plans)[place]

    @property
    def savings(self) -> list[float]:
        """The share of the baseline's MACs that each plan saves."""
        return [1 - macs / self.macs[0] for macs in self.macs[1:]]

    @property
    def work(self) -> float:
        """The MACs of all images of the search, in images of the baseline."""
        used = sum(
            saving * (plan.searched + plan.confirming)
            for saving, plan in zip(self.savings, self.outcome.plans, strict=True)
        )
        return self.images * (self.outcome.images - used)

    @property
    def paid_back_after(self) -> int | None:
        """The images of the recommended plan after which it has saved the search's MACs."""
        place = self.outcome.recommended
        return None if place is None else ceil(self.work / self.savings[place])


def write(folder: Folder, searched: Searched, answer: str, recommended: Config) -> None:
    """Writes ``frontier.json``, and the recommended config with the answer above it."""
    content = json.dumps(seal.with_seal(frontier(searched)), indent=1)
    folder.write(layout.FRONTIER, content + "\n")
    lines = [f"# {line}\n" for line in textwrap.wrap(answer, _COMMENT)]
    plain = shareable_config(recommended, exclude_defaults=True)
    config = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=1000)
    folder.write(layout.RECOMMENDED, "".join(lines) + config)


def frontier(searched: Searched) -> dict[str, Any]:
    """Returns the content of ``frontier.json``: no time is in it, so that it can be repeated."""
    outcome = searched.outcome
    names = list(searched.plans)
    place = outcome.recommended
    figures = [figure.limit.figure for figure in searched.figures]
    return {
        "model": searched.model,
        "limits": {figure.limit.figure: figure.limit.at_most for figure in searched.figures},
        "confidence": searched.confidence,
        "recommended": searched.recommended,
        "saving": None if place is None else round(searched.savings[place], _DIGITS),
        "upper_bounds": dict(zip(figures, map(_rounded, outcome.bounds), strict=False)),
        "prompts": searched.prompts,
        "prompts_searched": outcome.searched,
        "prompts_confirming": outcome.confirmed,
        "images": searched.images * outcome.images,
        "work_in_baseline_images": round(searched.work, 1),
        "paid_back_after_images": searched.paid_back_after,
        "confirmed_before": searched.earlier,
        "chain": [names[plan] for plan in outcome.chain],
        "macs_per_image_of_baseline": searched.macs[0],
        "plans": sorted(_plans(searched, figures), key=lambda plan: plan["saving"]),
    }


def _plans(searched: Searched, figures: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for place, (name, arm) in enumerate(searched.plans.items()):
        plan = searched.outcome.plans[place]
        losses = [_interval(*loss) for loss in plan.losses]
        rows.append(
            {
                "plan": name,
                "description": describe(arm),
                "arm": arm.model_dump(mode="json", exclude_defaults=True),
                "macs_per_image": searched.macs[place + 1],
                "saving": round(searched.savings[place], _DIGITS),
                "state": plan.state.value,
                "images": searched.images * (plan.searched + plan.confirming),
                "prompts_searched": plan.searched,
                "prompts_confirming": plan.confirming,
                "losses": dict(zip(figures, losses, strict=True)),
            }
        )
    return rows


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": _rounded(value), "low": _rounded(low), "high": _rounded(high)}


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # and no -0.0


def sentence(searched: Searched, time_saved: float | None = None) -> str:
    """Returns the answer; ``time_saved``: the share of the baseline's time per image."""
    place = searched.outcome.recommended
    sentence = _nothing(searched) if place is None else _recommendation(searched, place, time_saved)
    if searched.earlier:
        sentence += (
            f". These prompts confirmed {searched.earlier} other search"
            f"{'es' if searched.earlier > 1 else ''} before, so the confidence does not hold here. "
            "Fix: search again on other prompts (prompts.shuffle, prompts.offset) in a new output"
        )
    return sentence


def _recommendation(searched: Searched, place: int, time_saved: float | None) -> str:
    name = list(searched.plans)[place]
    saves = f"saves {searched.savings[place]:.0%} of the MACs"
    if time_saved is not None:
        saves += f" and {time_saved:.0%} of the time"
    plan = searched.outcome.plans[place]
    estimates = " and ".join(f"{value:.3g}" for value, _, _ in plan.losses)
    many = "s" if len(plan.losses) > 1 else ""
    return (
        f"{describe(searched.plans[name])} {saves}; it {_promise(searched)} (confirmed on "
        f"{plan.confirming:,} prompts that the search had not used, {searched.confidence:.0%} "
        f"confidence; estimate{many} {estimates})"
    )


def _promise(searched: Searched) -> str:
    """The limits in words: ``loses at most 0.02 of prompt accuracy``."""
    lost = [figure for figure in searched.figures if not figure.metric.needs_baseline]
    near = [figure for figure in searched.figures if figure.metric.needs_baseline]
    words = []
    if lost:
        each = [f"at most {f.limit.at_most:g} of {f.metric.heading}" for f in lost]
        words.append("loses " + " and ".join(each))
    if near:
        each = [f"{f.limit.at_most:g} of {f.metric.heading}" for f in near]
        words.append("stays within " + " and ".join(each) + " of the baseline's images")
    return " and ".join(words)


def _nothing(searched: Searched) -> str:
    sentence = f"no plan was confirmed that {_promise(searched)}; use the baseline"
    outcome = searched.outcome
    if not outcome.chain:
        return sentence
    place, figure = outcome.chain[0], searched.figures[0]
    plan = outcome.plans[place]
    value, low, high = plan.losses[0]
    name = list(searched.plans)[place]
    sentence += f" (nearest: {name}, estimate {value:.3g} [{low:.3g}, {high:.3g}]"
    room = figure.limit.at_most - value
    if room <= 0:
        return sentence + ")"
    spread = (high - low) / (2 * 1.96) * sqrt(plan.searched + plan.confirming)
    needed = ceil((_POWER * spread / room) ** 2 / (1 - SEARCHED))
    more = f"; about {needed:,} prompts may confirm it" if needed > searched.prompts else ""
    return f"{sentence}{more})"
