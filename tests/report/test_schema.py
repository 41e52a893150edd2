"""The schema of report.json: what a run writes keeps it, and what does not is found."""

import copy

import jsonschema
import pytest

from tgate_batch.report.summary import schema

CHECK = jsonschema.Draft202012Validator(schema())


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_report_of_a_run_keeps_it(summary):
    assert [error.message for error in CHECK.iter_errors(summary)] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("images", -1),
        ("speedup", "1.4x"),
        ("thresholds", None),
        ("by_worker", {"worker": {"images": 3}}),
        ("change", {"prompt_accuracy": {"value": 0.1}}),
    ],
)
def test_what_an_arm_may_not_say_is_found(summary, key, value):
    spoiled = copy.deepcopy(summary)
    spoiled["arms"][1][key] = value
    (error,) = CHECK.iter_errors(spoiled)
    assert list(error.path)[:3] == ["arms", 1, key]


def test_missing_figure_is_found(summary):
    spoiled = copy.deepcopy(summary)
    del spoiled["arms"][0]["speedup"]
    assert [error.message for error in CHECK.iter_errors(spoiled)] == [
        "'speedup' is a required property"
    ]
