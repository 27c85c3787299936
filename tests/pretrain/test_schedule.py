"""Learning-rate schedules: exact ends, N updates."""

import math

import pytest

from pretrain.config.schedule import WSD, Constant, Cosine, CosineRestarts, Linear


@pytest.mark.parametrize("schedule", [Cosine, CosineRestarts, Linear, Constant, WSD])
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


JAGGED = {
    1: 0.002, 250: 0.5, 499: 0.998, 500: 1.0, 4999: 0.8868779075655958, 5000: 0.0, 5001: 0.008819788065314187,
    5050: 0.44098940326570935, 5099: 0.8731590184661044, 5100: 0.8819788065314187, 9999: 0.5681921123095288, 10000: 0.0,
    10100: 0.5608736853562596, 15000: 0.0, 15100: 0.23308612678594487, 19999: 0.10000000584000258,
}  # fmt: skip
"""Multipliers of ReLoRA's release: 20,000 steps, warm-ups of 500 and 100, restarts every 5,000, down to 0.1."""


def test_restarts_are_those_of_relora():
    rates = CosineRestarts(
        total_steps=20_000, warmup_fraction=0.025, min_lr_ratio=0.1, restart_every=5000, restart_warmup_steps=100
    )
    assert {step: rates.factor(step) for step in JAGGED} == pytest.approx(JAGGED, rel=1e-12, abs=1e-12)
    assert rates.factor(20_000) == pytest.approx(0.1)


def test_between_restarts_the_curve_is_the_cosine():
    settings = {"total_steps": 60, "warmup_fraction": 0.1}
    jagged, plain = CosineRestarts(restart_every=20, restart_warmup_steps=4, **settings), Cosine(**settings)
    differ = {step for step in range(1, 61) if jagged.factor(step) != plain.factor(step)}
    assert differ == {20, 21, 22, 23, 40, 41, 42, 43}
    assert CosineRestarts(restart_every=20, restart_warmup_steps=0, **settings).factor(20) == plain.factor(20)
