"""One sentence an arm, from entries of report.json that are written by hand."""

import pytest

from tgate_batch.report.verdict import verdicts

BASELINE = {
    "model": "demo",
    "arm": "baseline",
    "is_baseline": True,
    "images": 200,
    "errors": 0,
    "images_per_second_per_worker": 2.0,
    "images_per_second_interval": {"value": 2.0, "low": 1.9, "high": 2.1},
    "speedup": 1.0,
    "usd_per_1000_images": 0.014,
    "prompt_accuracy": 0.9,
    "thresholds": [],
}
GATED = BASELINE | {
    "arm": "tgate",
    "is_baseline": False,
    "speedup": 1.37,
    "speedup_interval": {"value": 1.37, "low": 1.3, "high": 1.44},
    "usd_per_1000_images": 0.01,
    "change": {
        "prompt_accuracy": {"value": 0.035, "low": -0.005, "high": 0.08, "gained": 9, "lost": 2}
    },
}
FASTER = "tgate renders 1.37 [1.30, 1.44] times as many images a second"


def said(*arms):
    return verdicts({"arms": list(arms)})


def around(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def of_accuracy(**change):
    return GATED | {"change": {"prompt_accuracy": change}}


def judged(decided, passed):
    return {"decided": decided, "passed": passed}


def test_sentence_says_how_fast_how_well_and_what_it_saves():
    assert said(BASELINE, GATED) == [
        f"{FASTER}, at no resolvable gain of prompt accuracy (+3.5 points [-0.5, +8.0]); "
        "saves $0.0040 [0.0032, 0.0043] per 1,000 images ($0.0100 for $0.0140)"
    ]


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (-0.05, -0.08, -0.02, "at a loss of prompt accuracy (-5.0 points [-8.0, -2.0])"),
        (0.05, 0.02, 0.08, "at a gain of prompt accuracy (+5.0 points [+2.0, +8.0])"),
        (
            0.05,
            None,
            None,
            "with a change of prompt accuracy of +5.0 points (too few prompts for an interval)",
        ),
    ],
)
def test_interval_decides_what_a_change_is_called(value, low, high, words):
    arm = of_accuracy(value=value, low=low, high=high)
    assert said(BASELINE, arm)[0].startswith(f"{FASTER}, {words};")


@pytest.mark.parametrize(
    ("value", "words"),
    [(-0.01, "loss"), (0.01, "gain"), (0.0, "loss")],
)
def test_change_that_may_be_none_is_named_by_its_sign(value, words):
    arm = of_accuracy(value=value, low=value - 0.03, high=value + 0.03)
    assert f", at no resolvable {words} of prompt accuracy (" in said(BASELINE, arm)[0]


def test_rise_of_a_distance_that_may_be_none_is_no_resolvable_rise():
    for value, word in ((1, "rise"), (-1, "fall")):
        arm = GATED | {"change": {}, "fid": 20.0, "distance_change": around(value, 3)}
        assert f", at no resolvable {word} of FID (" in said(BASELINE, arm)[0]


def test_few_prompts_tell_nothing_and_the_verdict_says_how_many_would():
    change = {"value": -0.1, "low": -0.224, "high": 0.034}
    few = of_accuracy(**change) | {"prompts_compared": 40}
    text = said(BASELINE, few)[0]
    assert (
        ", with too few prompts to tell a loss of prompt accuracy (-10.0 points [-22.4, +3.4]): "
        "about " in text
    )
    assert "no resolvable" not in text
    would_do = int(text.partition(": about ")[2].partition(" would suffice")[0])
    assert 100 < would_do < 400
    clear = of_accuracy(value=-0.3, low=-0.4, high=-0.2) | {"prompts_compared": 40}
    assert ", at a loss of prompt accuracy (" in said(BASELINE, clear)[0]
    none = of_accuracy(value=0.0, low=-0.1, high=0.1) | {"prompts_compared": 40}
    assert "too few prompts to tell" in said(BASELINE, none)[0]
    assert "would suffice" not in said(BASELINE, none)[0]


@pytest.mark.parametrize(
    ("speedup", "interval", "remarked"),
    [
        (2.39, {"value": 2.39, "low": 2.2, "high": 2.6}, True),
        (2.39, None, True),
        (1.63, {"value": 1.63, "low": 1.62, "high": 1.64}, False),  # a clock's error
        (2.39, {"value": 2.39, "low": 1.5, "high": 3.0}, False),
        (1.37, {"value": 1.37, "low": 1.3, "high": 1.44}, False),
    ],
)
def test_speed_up_beyond_what_the_saved_macs_allow_is_remarked(speedup, interval, remarked):
    arm = GATED | {"speedup": speedup, "speedup_interval": interval, "macs_saved": 1 - 1 / 1.61}
    told = "(the saved MACs explain 1.61 at most: measure again"
    assert (told in said(BASELINE, arm)[0]) == remarked


def test_distance_that_falls_is_better_and_stands_beside_the_pictures_own_figure():
    arm = GATED | {
        "fid": 20.0,
        "distance_label": "FID-10000",
        "distance_change": around(-2, 1),
        "kid_change": around(1, 0.5),
    }
    assert (
        "(+3.5 points [-0.5, +8.0]) and at a fall of FID (-2.00 [-3.00, -1.00]);"
        in (said(BASELINE, arm)[0])
    )


def test_kernel_distance_speaks_where_there_is_nothing_else():
    arm = GATED | {"fd": 20.0, "change": {}, "kid_change": around(0.01, 0.002)}
    assert "at a rise of kernel distance (+0.0100 [+0.0080, +0.0120])" in said(BASELINE, arm)[0]


def test_speed_that_may_be_the_same_is_called_so():
    arm = GATED | {"speedup": 1.01, "speedup_interval": around(1.01, 0.02)}
    assert (
        "1.01 [0.99, 1.03] times as many images a second (no resolvable change of speed)"
        in (said(BASELINE, arm)[0])
    )


def test_slower_arm_costs_more():
    arm = GATED | {
        "usd_per_1000_images": 0.028,
        "speedup": 0.5,
        "speedup_interval": {"value": 0.5, "low": 0.4, "high": 1.25},
    }
    assert said(BASELINE, arm)[0].endswith(
        "; costs $0.0140 [-0.0028, 0.0210] more per 1,000 images ($0.0280 for $0.0140)"
    )


def test_saving_without_an_interval_has_none():
    arm = GATED | {"speedup_interval": None, "usd_per_1000_images": 3.0}
    assert said(BASELINE | {"usd_per_1000_images": 12.0}, arm)[0].endswith(
        "; saves $9.00 per 1,000 images ($3.00 for $12.00)"
    )


def test_what_is_not_known_is_said():
    arm = GATED | {
        "speedup": None,
        "speedup_interval": None,
        "change": None,
        "usd_per_1000_images": None,
    }
    assert said(BASELINE, arm) == [
        "tgate has no measured speed-up, and no change of quality was measured"
    ]
    few = GATED | {"speedup_interval": None}
    assert (
        "renders 1.37 times as many images a second (too few batches for an interval)"
        in (said(BASELINE, few)[0])
    )


def test_pictures_that_failed_are_counted():
    assert "; 3 of 203 images failed;" in said(BASELINE, GATED | {"errors": 3})[0]
    kinds = [{"kind": "ValueError", "rows": 200, "error": "ValueError: no"}]
    nothing = GATED | {
        "images": 0,
        "errors": 200,
        "error_kinds": kinds,
        "usd_per_1000_images": None,
    }
    assert said(BASELINE, nothing) == ["tgate has no images: all 200 failed (ValueError: no)"]
    none = BASELINE | {"images": 0}
    assert "and the baseline has no images to compare with" in said(none, GATED)[0]


def test_thresholds_are_counted_by_how_they_stand():
    thresholds = [judged(True, True), judged(True, False), judged(False, True), judged(True, True)]
    assert said(BASELINE, GATED | {"thresholds": thresholds})[0].endswith(
        "; thresholds: 2 passed, 1 failed, 1 undecided"
    )


def test_baseline_speaks_only_where_it_stands_alone():
    assert said(BASELINE) == [
        "baseline renders 2.00 [1.90, 2.10] images a second with each worker "
        "(it is the baseline: no comparison)"
    ]


def test_models_are_named_where_there_are_several():
    other = {"model": "sdxl"}
    found = said(BASELINE, GATED, BASELINE | other, GATED | other)
    assert [line.split(" renders")[0] for line in found] == ["demo tgate", "sdxl tgate"]
