"""What a config says that its author may not have meant: nothing of it is refused."""

from collections.abc import Iterator

from tgate_batch.config import Arm, Config, ResolvedSampling
from tgate_batch.models.resolve import resolve_model, resolve_sampling


def config_warnings(config: Config) -> Iterator[str]:
    """A line each: what a run will do without effect, twice, or with nothing to compare."""
    yield from _of_arms_alike(config)
    if config.baseline is None and len(config.arms) > 1:
        yield (
            "no arm is a baseline, so no speed-up, saving or paired figure is measured; add one "
            "with nothing set, e.g. baseline: {}"
        )
    for model in config.models:
        found = resolve_model(model)
        sampling = resolve_sampling(model, config.sampling, found)
        for name, arm in config.arms.items():
            for fault in _of_arm(arm, sampling, found.row.guidance_scale):
                yield f"arm {name} with {model.name}: {fault}"


def _of_arms_alike(config: Config) -> Iterator[str]:
    names = list(config.arms)
    for position, name in enumerate(names):
        alike = [one for one in names[:position] if config.arms[one] == config.arms[name]]
        if alike:
            yield f"arms {alike[0]} and {name} are one and the same and draw equal pictures"


def _of_arm(arm: Arm, sampling: ResolvedSampling, documented: float) -> Iterator[str]:
    steps = sampling.under(arm).steps
    plan = None if arm.plan is None else arm.plan.at(steps)
    if plan is not None and plan.gate_step >= steps:
        yield f"its gate at step {plan.gate_step} is never reached in {steps} steps"
    if plan is not None and plan.warm_up >= plan.gate_step:
        yield f"its warm_up of {plan.warm_up} steps lasts beyond the gate at {plan.gate_step}"
    if arm.cache is not None and arm.cache.interval == 1:
        yield (
            "deepcache with interval 1 computes every step in full, so it changes nothing; give "
            "an interval of 2 or more"
        )
    if sampling.guidance_scale <= 1 < documented:
        if plan is not None:
            yield f"{_NONE.format(sampling.guidance_scale)}, so the gate saves attention alone"
        elif arm.interval is not None:
            yield f"{_NONE.format(sampling.guidance_scale)}, so its interval changes nothing"


_NONE = "guidance_scale {:g} is no guidance"
