"""The checks before a run, so that all problems are reported together, before the first image.

A check is a function of a config that raises UserError, with an argument for each problem. It
writes nothing. ``output.run.prepare`` checks what depends on the output folder.
"""

from collections.abc import Callable, Iterable

from tgate_batch.config import Config
from tgate_batch.errors import Problems, UserError
from tgate_batch.models import engine, schedulers
from tgate_batch.output import run as runs
from tgate_batch.output.run import Prepared, device_of
from tgate_batch.render import codec
from tgate_batch.report import thresholds
from tgate_batch.score import registry
from tgate_batch.score.reference_check import check_references

Check = Callable[[Config], None]


def _thresholds(config: Config) -> None:
    thresholds.check(config.thresholds.figures)
    thresholds.check_measured(config)


def _schedulers(config: Config) -> None:
    problems = Problems()
    with problems.collected():
        schedulers.check_name(config.sampling.scheduler)
    for name, arm in config.arms.items():
        with problems.collected():
            schedulers.check_name(arm.scheduler, f"arms.{name}.scheduler")
    problems.raise_if_any()


def _compiler(config: Config) -> None:
    """Checks this machine; workers on others check their own before they render."""
    if config.workers.executor == "local":
        engine.check_compiler(config.engine, device_of(config))


def _room(config: Config) -> None:
    """Checks this machine; a cluster's resources are checked once it is joined."""
    if config.workers.executor != "local" or config.workers.gpus_each == 0:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"workers.gpus_each: a worker needs {config.workers.gpus_each:g} GPU, and torch finds "
            "none on this machine. Fix: set it to 0, which renders on the CPU"
        )


CHECKS: tuple[Check, ...] = (
    lambda config: codec.check(config.images),
    lambda config: registry.check(config.score),
    check_references,
    lambda config: registry.check_weights(config.score, config.baseline is not None),
    _thresholds,
    _schedulers,
    _compiler,
    _room,
)


def run_preflight(
    config: Config, replace_stale: bool = False, further: Iterable[Check] = ()
) -> Prepared:
    """Returns a run that can be rendered; raises UserError with every problem."""
    problems = Problems()
    for check in (*further, *CHECKS):
        with problems.collected():
            check(config)
    return runs.prepare(config, replace_stale, problems)
