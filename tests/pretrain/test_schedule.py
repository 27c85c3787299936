"""Learning-rate schedules: exact ends, N updates."""

import math

import pytest

from pretrain.config.schedule import WSD, Constant, Cosine, Linear


@pytest.mark.parametrize("schedule", [Cosine, Linear, Constant, WSD])
def test_warm_up_is_linear_and_peaks_at_its_end(schedule):
    rates = schedule(total_steps=100, warmup_fraction=0.1)
    assert [rates.factor(step) for step in (1, 5, 10)] == [0.1, 0.5, 1.0]


def test_the_last_update_uses_the_end_value_and_there_is_none_after_it():
    for rates in (
        Cosine(total_steps=50, min_lr_ratio=0.05),
        Linear(total_steps=50, min_lr_ratio=0.05),
        WSD(total_steps=50, min_lr_ratio=0.05),
    ):
        assert rates.factor(50) == pytest.approx(0.05)
        with pytest.raises(AssertionError):
            rates.factor(51)


def test_cosine_half_way():
    rates = Cosine(total_steps=110, warmup_fraction=1 / 11, min_lr_ratio=0.1)
    assert rates.warmup_steps == 10
    assert rates.factor(60) == pytest.approx(0.55)
    assert rates.factor(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_wsd_is_stable_then_decays():
    rates = WSD(total_steps=100, warmup_fraction=0.0, decay_fraction=0.2, min_lr_ratio=0.0)
    assert rates.factor(80) == 1.0
    assert rates.factor(90) == pytest.approx(0.5)


def test_no_warm_up_starts_below_the_peak_only_by_the_schedule():
    assert Constant(total_steps=3, warmup_fraction=0.0).factor(1) == 1.0
