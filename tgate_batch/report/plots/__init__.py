"""The plots of the page, from the content of report.json; each also has its figures as a table."""

from collections.abc import Mapping
from typing import Any

from tgate_batch.report.plots.base import Plot
from tgate_batch.report.plots.quality import frontiers, gained_and_lost, spreads
from tgate_batch.report.plots.time import course, stages, whole, workers


def plots(summary: Mapping[str, Any]) -> list[Plot]:
    """Returns the plots that have data."""
    arms = summary["arms"]
    return [
        *frontiers(arms),
        *stages(arms),
        *whole(summary["workers"]),
        *course(arms),
        *workers(arms),
        *gained_and_lost(arms),
        *spreads(arms),
    ]
