"""What a config says that its author may not have meant, a line each."""

import pytest

from tgate_batch import config
from tgate_batch.output.config_warnings import config_warnings

ARMS = {"baseline": {}, "tgate": {"gate_step": 10}}


def said(arms=None, model="sd15", **sampling) -> list[str]:
    data = {
        "models": [model],
        "prompts": {"path": "captions.txt"},
        "arms": ARMS if arms is None else arms,
        "sampling": sampling,
        "output": "out",
    }
    return list(config_warnings(config.parse(data)))


def test_a_sound_config_has_none():
    assert said() == []
    assert said(model="lcm_pixart_alpha", arms={"baseline": {}, "tgate": {"gate_step": 1}}) == []


@pytest.mark.parametrize(
    ("arms", "sampling", "line"),
    [
        (
            ARMS,
            {"steps": 10},
            "arm tgate with sd15: its gate at step 10 is never reached in 10 steps",
        ),
        (
            ARMS | {"fewer": {"gate_step": 10, "steps": 8}},
            {},
            "arm fewer with sd15: its gate at step 10 is never reached in 8 steps",
        ),
        (
            {"baseline": {}, "late": {"gate_step": 3, "warm_up": 5}},
            {},
            "arm late with sd15: its warm_up of 5 steps ends after the gate at 3",
        ),
        (
            ARMS | {"twin": {"gate_step": 10, "sp_interval": 1}},
            {},
            "arms tgate and twin have equal settings, so they render equal images",
        ),
        (
            ARMS,
            {"guidance_scale": 1},
            "arm tgate with sd15: guidance_scale 1 turns guidance off, so the gate saves attention "
            "only",
        ),
        (
            {"baseline": {}, "interval": {"guidance_until": 0.5}},
            {"guidance_scale": 0},
            "arm interval with sd15: guidance_scale 0 turns guidance off, so its interval changes "
            "nothing",
        ),
        (
            {"baseline": {}, "cached": {"deepcache": {"interval": 1}}},
            {},
            "arm cached with sd15: deepcache with interval 1 computes every step in full, so it "
            "changes nothing. Fix: give an interval of 2 or more",
        ),
        (
            {"early": {"gate_step": 5}, "late": {"gate_step": 10}},
            {},
            "no arm is a baseline, so no speed-up, saving or paired figure is measured. Fix: add "
            "an arm without settings, e.g. baseline: {}",
        ),
    ],
)
def test_each_is_one_line(arms, sampling, line):
    assert said(arms, **sampling) == [line]
