"""One small run for all tests of the report that need a whole one."""

import json
from pathlib import Path

import fabricated
import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run that was drawn, scored and reported; not to be changed."""
    return fabricated.finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def report(finished) -> Path:
    """The folder of its report."""
    return Path(finished.folder.path("report"))


@pytest.fixture(scope="session")
def summary(report) -> dict:
    """The content of its report.json."""
    return json.loads((report / "report.json").read_text(encoding="utf-8"))
