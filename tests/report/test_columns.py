import pytest

from tgate_batch.report import result_table
from tgate_batch.report.columns import columns


def around(value, half, **more):
    return {"value": value, "low": value - half, "high": value + half, **more}


BASELINE = {
    "model": "demo",
    "arm": "baseline",
    "is_baseline": True,
    "images": 4,
    "errors": 0,
    "broken": 0,
    "images_per_second_per_worker": 2.0,
    "images_per_second_interval": around(2.0, 0.25),
    "speedup": 1.0,
    "macs_per_image": 2e9,
    "macs_per_image_with_attention": 2.5e9,
    "macs_saved": 0.0,
    "usd_per_1000_images": None,
    "fid": None,
    "fd": 20.0,
    "distance_label": "FD-efficientnet-lite0-4",
    "distance_corrected": around(15.0, 2),
    "distance_change": None,
    "kid": around(0.5, 0.25, mean=0.5, pictures=4),
    "kid_change": None,
    "precision": 0.75,
    "recall": None,
    "clip_score": None,
    "prompt_accuracy": 0.9,
    "paired": None,
    "change": None,
}
GATED = BASELINE | {
    "arm": "tgate",
    "is_baseline": False,
    "images_per_second_per_worker": 3.0,
    "images_per_second_interval": None,
    "speedup": 1.5,
    "speedup_interval": around(1.5, 0.1),
    "macs_per_image": 1e11,
    "macs_per_image_with_attention": 1.25e11,
    "macs_saved": 0.5,
    "fd": 23.0,
    "distance_change": around(3.0, 4),
    "kid_change": around(0.125, 0.0625),
    "prompt_accuracy": 0.935,
    "paired": {"psnr": 28.04, "ssim": 0.9},
    "intervals": {"psnr": around(28.04, 0.5)},
    "change": {
        "prompt_accuracy": {"value": 0.035, "low": -0.005, "high": 0.08}
        | {"gained": 13, "lost": 6, "count": 200}
    },
}
ARMS = [BASELINE, GATED]


def column(name, arms=ARMS):
    (found,) = (column for column in columns(arms) if column.name == name)
    return found


def cells(arms, name, heading):
    head, *body = result_table.rows(arms, name)
    return [line[head.index(heading)] for line in body]


def test_speed_table_has_what_was_measured_and_nothing_else():
    assert result_table.rows(ARMS, "speed") == [
        [
            "model",
            "arm",
            "images",
            "errors",
            "images/s per worker [95% CI]",
            "speed-up [95% CI]",
            "MACs per image, attention included",
            "MACs per image, published convention",
            "MACs saved",
        ],
        ["demo", "baseline", "4", "0", "2.00 [1.75, 2.25]", "1.00x", "2.50 G", "2.00 G", "0.0%"],
        ["demo", "tgate", "4", "0", "3.00", "1.50x [1.40x, 1.60x]", "0.12 T", "0.10 T", "50.0%"],
    ]


def test_table_of_sets_names_the_distance_and_its_uncertainty():
    assert result_table.rows(ARMS, "sets") == [
        [
            "model",
            "arm",
            "FD-efficientnet-lite0-4",
            "FD-efficientnet-lite0, bias-corrected [95% CI]",
            "FD-efficientnet-lite0 change [95% CI]",
            "kernel distance [95% CI]",
            "kernel distance change [95% CI]",
            "precision",
        ],
        [
            "demo",
            "baseline",
            "20.00",
            "15.00 [13.00, 17.00]",
            "–",
            "0.5000 [0.2500, 0.7500]",
            "–",
            "0.75",
        ],
        [
            "demo",
            "tgate",
            "23.00",
            "15.00 [13.00, 17.00]",
            "+3.00 [-1.00, +7.00]",
            "0.5000 [0.2500, 0.7500]",
            "+0.1250 [+0.0625, +0.1875]",
            "0.75",
        ],
    ]


def test_arms_of_different_counts_each_say_their_own():
    arms = [BASELINE, GATED | {"distance_label": "FD-efficientnet-lite0-3"}]
    assert cells(arms, "sets", "FD-efficientnet-lite0-n") == ["20.00 (n = 4)", "23.00 (n = 3)"]
    assert "FD-efficientnet-lite0, bias-corrected [95% CI]" in result_table.rows(arms, "sets")[0]


def test_table_of_pictures_has_each_metric_and_the_change_that_it_asks_for():
    assert result_table.rows(ARMS, "images") == [
        [
            "model",
            "arm",
            "PSNR (dB) [95% CI]",
            "SSIM",
            "prompt accuracy",
            "accuracy change [95% CI]",
        ],
        ["demo", "baseline", "–", "–", "90.0%", "–"],
        [
            "demo",
            "tgate",
            "28.0 [27.5, 28.5]",
            "0.900",
            "93.5%",
            "+3.5 points [-0.5, +8.0]: 13 gained, 6 lost",
        ],
    ]


def test_change_of_too_few_prompts_has_no_interval_and_its_counts():
    change = {"value": -0.25, "low": None, "high": None, "gained": 0, "lost": 1, "count": 4}
    arms = [BASELINE, GATED | {"change": {"prompt_accuracy": change}}]
    shown = cells(arms, "images", "accuracy change")
    assert shown == ["–", "-25.0 points: 0 gained, 1 lost"]


def test_brief_table_has_the_first_figures_of_each_and_no_interval_but_a_changes():
    head, _, gated = result_table.rows(ARMS, "brief")
    assert dict(zip(head, gated, strict=True)) == {
        "model": "demo",
        "arm": "tgate",
        "images": "4",
        "errors": "0",
        "images/s per worker": "3.00",
        "speed-up": "1.50x",
        "MACs saved": "50.0%",
        "FD-efficientnet-lite0-4": "23.00",
        "PSNR (dB)": "28.0",
        "prompt accuracy": "93.5%",
        "accuracy change [95% CI]": "+3.5 points [-0.5, +8.0]",
    }


def test_official_features_make_it_fid_and_kid():
    arms = [arm | {"fid": arm["fd"], "fd": None, "distance_label": "FID-4"} for arm in ARMS]
    headings = result_table.rows(arms, "sets")[0]
    assert headings[2:6] == [
        "FID-4",
        "FID, bias-corrected [95% CI]",
        "FID change [95% CI]",
        "KID [95% CI]",
    ]


def test_change_over_a_distance_of_nothing_is_shown():
    arms = [BASELINE | {"fd": 0.0}, GATED]
    assert cells(arms, "sets", "FD-efficientnet-lite0-4") == ["0.00", "23.00"]
    shown = cells(arms, "sets", "FD-efficientnet-lite0 change [95% CI]")
    assert shown == ["–", "+3.00 [-1.00, +7.00]"]


def test_comparisons_are_changes_with_intervals():
    assert [result_table.comparisons(ARMS, name) for name in ("speed", "images", "sets")] == [
        0,
        1,
        2,
    ]
    assert result_table.comparisons([BASELINE, GATED, GATED], "sets") == 4


def test_no_arms_make_a_table_of_no_columns():
    assert result_table.rows([], "speed") == [[]]


def test_every_column_has_a_name_of_its_own():
    names = [column.name for column in columns()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("errors_percent", 0.0),
        ("fd_change", 3.0),
        ("fid_change", None),
        ("fd_corrected", 15.0),
        ("kid", 0.5),
        ("kid_change", 0.125),
        ("psnr", 28.04),
        ("lpips", None),
        ("prompt_accuracy_change", 0.035),
    ],
)
def test_value_lies_where_the_column_says(name, value):
    assert column(name).value(GATED, BASELINE) == pytest.approx(value)


def test_change_of_an_official_distance_is_not_that_of_another():
    assert column("fid_change").bounds(GATED) is None
    assert column("fd_change").bounds(GATED) == around(3.0, 4)


def test_every_column_of_a_table_explains_itself_in_sentences():
    for column in columns():
        if column.tables:
            assert column.explanation.endswith("."), column.name
