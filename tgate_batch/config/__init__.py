"""Reads and validates configs: YAML in, frozen sections out, unknown keys refused."""

from tgate_batch.config.bundled import find, names, source_of
from tgate_batch.config.loading import load, parse_plain, plain
from tgate_batch.config.sampling import ResolvedSampling, effective_sampling
from tgate_batch.config.sections import (
    OWN_SCHEDULER,
    Arm,
    Columns,
    Config,
    Cost,
    Engine,
    FindPlan,
    Images,
    Lora,
    Model,
    Prompts,
    Sampling,
    Score,
    Section,
    Threshold,
    Thresholds,
    Workers,
    scheduler_of,
)
from tgate_batch.config.validation import parse

__all__ = [
    "OWN_SCHEDULER",
    "Arm",
    "Columns",
    "Config",
    "Cost",
    "Engine",
    "FindPlan",
    "Images",
    "Lora",
    "Model",
    "Prompts",
    "ResolvedSampling",
    "Sampling",
    "Score",
    "Section",
    "Threshold",
    "Thresholds",
    "Workers",
    "effective_sampling",
    "find",
    "load",
    "names",
    "parse",
    "parse_plain",
    "plain",
    "scheduler_of",
    "source_of",
]
