"""The pre-flight: what can be refused is refused before the first image, all of it together.

A check is a function of a config that raises UserError, with a line for each problem. It reads what
it needs and writes nothing. What needs the output folder is checked by ``output.run.prepare``.
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


def _images(config: Config) -> None:
    codec.check(config.images)


def _score(config: Config) -> None:
    """Extractors and weights: their names, and whether they are there."""
    registry.check(config.score)


def _references(config: Config) -> None:
    """Whether references are there, and can be compared with."""
    check_references(config)


def _weights(config: Config) -> None:
    """Whether the weights of metrics and extractors are what they are taken for."""
    registry.check_weights(config.score, config.baseline is not None)


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
    """Of this machine; workers on others check their own before they render."""
    if config.workers.executor == "local":
        engine.check_compiler(config.engine, device_of(config))


def _room(config: Config) -> None:
    """Of this machine; what a cluster offers is known once it is there, and checked then."""
    if config.workers.executor != "local" or config.workers.gpus_each == 0:
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"workers.gpus_each: a worker asks {config.workers.gpus_each:g} GPU, and torch finds "
            "none on this machine. Fix: set it to 0, which renders on the CPU"
        )


CHECKS: tuple[Check, ...] = (
    _images,
    _score,
    _references,
    _weights,
    _thresholds,
    _schedulers,
    _compiler,
    _room,
)


def run_preflight(
    config: Config, replace_stale: bool = False, further: Iterable[Check] = ()
) -> Prepared:
    """The run, ready to be rendered; raises UserError with all that stands against it."""
    problems = Problems()
    for check in (*further, *CHECKS):
        with problems.collected():
            check(config)
    return runs.prepare(config, replace_stale, problems)
