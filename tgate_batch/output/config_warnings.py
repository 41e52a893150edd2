"""Warnings about a config that is valid but probably not intended."""

from collections.abc import Iterator

from tgate_batch.config import Arm, Config, ResolvedSampling, effective_sampling
from tgate_batch.models.resolve import resolve_model, resolve_sampling


def config_warnings(config: Config) -> Iterator[str]:
    """Yields a line for each setting without effect, equal arms, and a missing baseline."""
    arms = list(config.arms.items())
    for position, (name, arm) in enumerate(arms):
        equal = next((earlier for earlier, other in arms[:position] if other == arm), None)
        if equal is not None:
            yield f"arms {equal} and {name} have equal settings, so they render equal images"
    if config.baseline is None and len(arms) > 1:
        yield (
            "no arm is a baseline, so no speed-up, saving or paired figure is measured. Fix: add "
            "an arm without settings, e.g. baseline: {}"
        )
    for model in config.models:
        resolved = resolve_model(model)
        sampling = resolve_sampling(model, config.sampling, resolved)
        for name, arm in arms:
            for warning in _of_arm(arm, sampling, resolved.row.guidance_scale):
                yield f"arm {name} with {model.name}: {warning}"


def _of_arm(arm: Arm, sampling: ResolvedSampling, documented: float) -> Iterator[str]:
    steps = effective_sampling(sampling, arm).steps
    plan = None if arm.plan is None else arm.plan.at(steps)
    if plan is not None and plan.gate_step >= steps:
        yield f"its gate at step {plan.gate_step} is never reached in {steps} steps"
    if plan is not None and plan.warm_up >= plan.gate_step:
        yield f"its warm_up of {plan.warm_up} steps ends after the gate at {plan.gate_step}"
    if arm.cache is not None and arm.cache.interval == 1:
        yield (
            "deepcache with interval 1 computes every step in full, so it changes nothing. Fix: "
            "give an interval of 2 or more"
        )
    if sampling.guidance_scale <= 1 < documented and (plan or arm.interval):
        effect = "the gate saves attention only" if plan else "its interval changes nothing"
        yield f"guidance_scale {sampling.guidance_scale:g} turns guidance off, so {effect}"
