import pytest

from tgate_batch.report import table
from tgate_batch.report.columns import columns

BASELINE = {
    "model": "demo",
    "arm": "baseline",
    "images": 4,
    "errors": 0,
    "broken": 0,
    "images_per_second_per_worker": 2.0,
    "speedup": 1.0,
    "macs_per_image_with_attention": 2.5e9,
    "macs_saved": 0.0,
    "usd_per_1000_images": None,
    "fid": None,
    "fd": 20.0,
    "distance_label": "FD-efficientnet-lite0-4",
    "distance_interval": {"value": 20.0, "low": 18.0, "high": 22.0},
    "distance_change": None,
    "extrapolation": {"infinite": 15.0},
    "kid": {"mean": 0.5, "spread": 0.25},
    "precision": 0.75,
    "recall": None,
    "clip_score": None,
    "prompt_accuracy": 0.9,
    "paired": None,
    "change": None,
}
GATED = BASELINE | {
    "arm": "tgate",
    "images_per_second_per_worker": 3.0,
    "speedup": 1.5,
    "macs_per_image_with_attention": 1.25e11,
    "macs_saved": 0.5,
    "fd": 23.0,
    "distance_change": {"value": 3.0, "low": -1.0, "high": 7.0},
    "prompt_accuracy": 0.8,
    "paired": {"psnr": 28.04, "ssim": 0.9},
    "change": {"prompt_accuracy": {"value": -0.1, "low": -0.2, "high": 0.0}},
}
ARMS = [BASELINE, GATED]


def test_speed_table_has_what_was_measured_and_nothing_else():
    assert table.rows(ARMS, "speed") == [
        [
            "model",
            "arm",
            "images",
            "errors",
            "images/s per worker",
            "speed-up",
            "MACs per image",
            "MACs saved",
        ],
        ["demo", "baseline", "4", "0", "2.00", "1.00x", "2.50 G", "0.0%"],
        ["demo", "tgate", "4", "0", "3.00", "1.50x", "0.12 T", "50.0%"],
    ]


def test_table_of_sets_names_the_distance_and_its_uncertainty():
    assert table.rows(ARMS, "sets") == [
        [
            "model",
            "arm",
            "FD-efficientnet-lite0-4",
            "95% CI",
            "change [95% CI]",
            "of infinitely many",
            "kernel distance",
            "precision",
        ],
        ["demo", "baseline", "20.00", "[18.00, 22.00]", "–", "15.00", "0.5000 ± 0.2500", "0.75"],
        [
            "demo",
            "tgate",
            "23.00",
            "[18.00, 22.00]",
            "+3.00 [-1.00, +7.00]",
            "15.00",
            "0.5000 ± 0.2500",
            "0.75",
        ],
    ]


def test_table_of_pictures_has_each_metric_and_the_change_that_it_asks_for():
    assert table.rows(ARMS, "pictures") == [
        ["model", "arm", "PSNR (dB)", "SSIM", "prompt accuracy", "accuracy change [95% CI]"],
        ["demo", "baseline", "–", "–", "90.0%", "–"],
        ["demo", "tgate", "28.0", "0.900", "80.0%", "-10.0% [-20.0%, +0.0%]"],
    ]


def test_brief_table_has_the_first_figures_of_each():
    assert table.rows(ARMS, "brief")[0] == [
        "model",
        "arm",
        "images",
        "errors",
        "images/s per worker",
        "speed-up",
        "MACs saved",
        "FD-efficientnet-lite0-4",
        "PSNR (dB)",
        "prompt accuracy",
        "accuracy change [95% CI]",
    ]


def test_official_features_make_it_fid_and_kid():
    arms = [arm | {"fid": arm["fd"], "fd": None, "distance_label": "FID-4"} for arm in ARMS]
    headings = table.rows(arms, "sets")[0]
    assert headings[2] == "FID-4"
    assert "KID" in headings
    assert "kernel distance" not in headings


def test_no_arms_make_a_table_of_no_columns():
    assert table.rows([], "speed") == [[]]


def test_every_column_has_a_name_of_its_own():
    names = [column.name for column in columns()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("errors_percent", 0.0),
        ("fd_change_percent", 15.0),
        ("fid_change_percent", None),
        ("kid", 0.5),
        ("psnr", 28.04),
        ("lpips", None),
    ],
)
def test_value_lies_where_the_column_says(name, value):
    (column,) = (column for column in columns() if column.name == name)
    assert column.value(GATED, BASELINE) == pytest.approx(value)
