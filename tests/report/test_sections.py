from tgate_batch.report import sections

REFERENCE = {"name": "drawn", "sha256": "ab" * 32, "count": 5000, "sample": 1000}


def around(value, half, **more):
    return {"value": value, "low": value - half, "high": value + half, **more}


BASELINE = {
    "model": "demo",
    "arm": "baseline",
    "is_baseline": True,
    "images": 100,
    "errors": 0,
    "fd": 20.0,
    "distance_label": "FD-net-100",
    "distance_note": "the covariance of the arm is rank-deficient",
    "reference": REFERENCE,
    "kid": around(0.5, 0.1, pictures=100),
    "precision": 0.5,
    "clip_score": 31.0,
    "distances": {
        "other": {"distance": 3.0, "distance_label": "FID-100", "kid": around(0.1, 0.05)}
    },
    "by": {"short": {"prompts": 60, "clip_score": 30.0, "change": {}}},
    "withheld": {"distance_corrected": "not comparable: few"},
}
GATED = BASELINE | {
    "arm": "tgate",
    "is_baseline": False,
    "change": {"clip_score": around(-0.25, 0.5)},
    "kid_change": around(0.0, 0.1),
    "distances": {
        "other": {"distance": 4.0, "distance_label": "FID-100", "kid_change": around(0.0, 0.25)}
    },
    "by": {
        "short": {"prompts": 60, "clip_score": 29.0, "change": {"clip_score": around(-1.0, 0.5)}},
        "long": {"prompts": 40, "clip_score": 32.0, "change": {"clip_score": None}},
    },
    "withheld": {
        "distance_corrected": "not comparable: few",
        "distance_change": "not comparable: few",
        "speedup_interval": "9 batches",
    },
}
ARMS = [BASELINE, GATED]
SUMMARY = {"arms": ARMS, "run": {"config": {"score": {"by": "length"}}}}


def part(title):
    (found,) = (part for part in sections.report_tables(SUMMARY) if part.title == title)
    return found


def test_breakdown_has_a_row_for_each_value_and_arm():
    found = part("Quality, image by image, by length")
    assert found.rows == [
        ["length", "model", "arm", "prompts", "CLIP score", "CLIP change [95% CI]"],
        ["short", "demo", "baseline", "60", "30.00", "–"],
        ["short", "demo", "tgate", "60", "29.00", "-1.00 [-1.50, -0.50]"],
        ["long", "demo", "tgate", "40", "32.00", "–"],
    ]
    assert found.baselines == [True, False, False]


def test_second_extractor_has_a_table_of_its_own():
    found = part("Quality, against the reference set, by other")
    assert found.rows == [
        ["model", "arm", "FID-100", "KID [95% CI]", "KID change [95% CI]"],
        ["demo", "baseline", "3.00", "0.1000 [0.0500, 0.1500]", "–"],
        ["demo", "tgate", "4.00", "–", "+0.0000 [-0.2500, +0.2500]"],
    ]


def test_table_says_how_many_comparisons_it_makes():
    assert part("Quality, image by image").note == (
        "This table makes 1 comparison: expect 0.05 intervals that exclude 0 by chance, "
        "although nothing changed."
    )
    assert part("Speed and cost").note is None


def test_reason_for_what_is_withheld_is_said_once():
    said = [note for note in sections.notes(ARMS) if note.startswith("Not shown")]
    assert said == [
        "Not shown: bias-corrected distance, change of the distance (demo baseline, demo tgate): "
        "not comparable: few.",
        "Not shown: interval of the speed-up (demo tgate): 9 batches.",
    ]


def test_notes_name_the_sizes_of_sets_and_what_is_left_out():
    said = "\n".join(sections.notes(ARMS))
    assert "Reference set: drawn, 5,000 images, sha256 abababab" in said
    assert "No interval includes its sampling noise" in said
    assert "of 100 images of the arm and 1,000 of the reference" in said
    assert "k = 3" in said
    assert said.count("rank-deficient") == 1
    assert "signific" not in said


def test_notes_of_arms_that_differ_are_each_told():
    other = GATED | {"distance_label": "FD-net-99", "distance_note": "one is broken"}
    said = sections.notes([BASELINE, other])
    assert "FD-net-100: the covariance of the arm is rank-deficient. (demo baseline)" in said
    assert "FD-net-99: one is broken. (demo tgate)" in said
