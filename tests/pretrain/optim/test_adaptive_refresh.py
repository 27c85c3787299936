"""Adaptive refreshes: gaps double where bases stay alike, up to a bound, and are otherwise as fixed ones."""

from itertools import pairwise

import pytest
import torch
from int8_drive import int8_linear, optimizer_of_codes
from optim_drive import gradients, optimizer_of
from support import check_optimizer
from torch import nn

from model.errors import UserError
from pretrain.optim.refresh import AdaptiveGap, is_due, overlap_of
from pretrain.optim.rules import PRESETS
from pretrain.optim.rules.galore import GaLore


def config(**settings):
    return GaLore.Config(**{"rank": 4, "refresh": "adaptive", "update_proj_gap": 10} | settings)


def refreshes(gap, overlap, steps):
    """The steps at which there was one."""
    found = []
    for step in range(steps):
        if gap.wait == 0:
            gap.refreshed(overlap)
            found.append(step)
        gap.tick()
    return found


@pytest.mark.parametrize("stagger", [True, False])
@pytest.mark.parametrize(("gap", "count"), [(10, 14), (200, 56), (1, 3), (7, 1)])
def test_below_the_threshold_they_are_the_fixed_ones(gap, count, stagger):
    settings = config(update_proj_gap=gap, refresh_stagger=stagger)
    for index in range(count):
        fixed = [step for step in range(5 * gap) if is_due(settings, index, count, step)]
        assert refreshes(AdaptiveGap(settings, index, count), 0.39, 5 * gap) == fixed


@pytest.mark.parametrize(("bound", "gaps"), [(0, [10, 20, 40, 80, 160, 160]), (35, [10, 20, 35, 35])])
def test_the_gap_doubles_after_five_overlaps_and_the_queue_begins_anew(bound, gaps):
    gap = AdaptiveGap(config(max_proj_gap=bound, refresh_stagger=False), 0, 1)
    steps = refreshes(gap, 0.4, 4000)
    found = [after - before for before, after in pairwise(steps)]
    # The first refresh has no overlap; the fifth overlap sets the gap that follows it.
    expected = [10] * 5 + [wide for wide in gaps[1:] for _ in range(5)]
    assert found[: len(expected)] == expected
    assert gap.gap == gaps[-1]


def test_a_mean_decides():
    gap = AdaptiveGap(config(), 0, 1)
    for overlap in (0.0, 0.9, 0.9, 0.1, 0.0, 0.0):  # the first does not count
        gap.refreshed(overlap)
    assert gap.gap == 10
    gap.refreshed(0.98)  # the oldest leaves the queue: 0.9 + 0.1 + 0 + 0 + 0.98
    assert gap.gap == 10
    gap.refreshed(0.92)  # 0.1 + 0 + 0 + 0.98 + 0.92 = 2.0
    assert gap.gap == 20
    assert gap.overlaps == []


def test_state_goes_into_a_tensor_and_back():
    one = AdaptiveGap(config(), 1, 3)
    for overlap in (0.5, 1 / 3, 0.7):
        one.refreshed(overlap)
    one.tick()
    other = AdaptiveGap(config(), 1, 3)
    other.load(one.tensor())
    assert vars(one) == vars(other)
    assert one.tensor().shape == (9,)


def test_overlaps():
    P = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0))).Q
    mixed = P[:, torch.arange(15, -1, -1)]
    assert overlap_of(config(), P, mixed).item() == pytest.approx(1)  # another basis of one subspace
    assert overlap_of(config(), P[:, :8], P[:, 4:12]).item() == pytest.approx(0.5)
    first = config(refresh_overlap="first_vector")
    assert overlap_of(first, P, mixed).item() == pytest.approx(0, abs=1e-6)
    assert overlap_of(first, P, -P).item() == pytest.approx(-1)


@pytest.mark.parametrize("update", ["step", "per_layer"])
@pytest.mark.parametrize("overlap", ["subspace", "first_vector"])
def test_steady_gradients_are_refreshed_less_and_less_and_changing_ones_as_before(update, overlap):
    """The same gradient but for noise leaves the subspace where it was; a new one each time does not."""
    steady = gradients((40, 30), 1)[0] @ torch.diag(torch.cat([torch.full((4,), 30.0), torch.ones(26)]))
    counts = {}
    for kind in ("steady", "changing"):
        settings = config(update_proj_gap=2, refresh_stagger=False, update=update, refresh_overlap=overlap)
        weight = nn.Parameter(torch.zeros(40, 30))
        optimizer = optimizer_of(settings, weight)
        for noise in gradients((40, 30), 60, seed=3):
            (weight * (steady + noise if kind == "steady" else noise)).sum().backward()
            optimizer.step()
        counts[kind] = optimizer.refreshes, optimizer.targets[0].gap.gap
    assert counts["changing"] == (30, 2)
    # Steps 0, 2, ... 10, then five gaps of 4 and of 8.
    assert counts["steady"] == (6 + 5 + 3, 8)


def test_a_refresh_without_a_basis_is_tried_again():
    weight = nn.Parameter(torch.ones(16, 16))
    optimizer = optimizer_of(config(refresh_stagger=False), weight)
    for step, factor in enumerate((0.0, 0.0, 1.0, 1.0)):
        (weight * factor * gradients((16, 16), 4)[step]).sum().backward()
        optimizer.step()
    assert (optimizer.kept_bases, optimizer.refreshes) == (2, 1)
    assert optimizer.targets[0].gap.wait == 8


@pytest.mark.fault("F38")
def test_a_skipped_update_is_not_counted_and_changes_no_basis():
    """The matrix that was due is due again, by another gradient."""
    linear = int8_linear(gradients((16, 16), 1)[0])
    optimizer = optimizer_of_codes(config(refresh_stagger=False, weights="int8"), linear)
    basis = optimizer.targets[0].P.clone()
    linear(torch.eye(16)).square().sum().backward()
    (optimizer.elements[0].parameter * float("nan")).sum().backward()
    optimizer.step()
    assert not optimizer.applied
    assert (optimizer.refreshes, optimizer.kept_bases, optimizer.targets[0].gap.wait) == (0, 0, 0)
    assert torch.equal(optimizer.targets[0].P, basis)
    assert optimizer.refresher.due(optimizer.targets[0], optimizer.updates)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("galore_adamw", {"max_proj_gap": 400}, r"optimizer\.max_proj_gap has no effect"),
        ("galore_adamw", {"refresh_threshold": 0.5}, r"optimizer\.refresh_threshold has no effect"),
        ("galore_adamw", {"refresh_overlap": "first_vector"}, r"optimizer\.refresh_overlap has no effect"),
        ("galore_adamw", {"refresh": "adaptive", "max_proj_gap": 20}, r"max_proj_gap 20 is less than"),
        ("apollo", {"refresh": "adaptive"}, r"projector gaussian draws them at random"),
        ("frugal", {"refresh": "adaptive"}, r"projector random_orthogonal draws"),
        ("muon", {"refresh": "adaptive"}, r'no effect with optimizer\.name = "muon"'),
        ("subtrack", {"refresh": "adaptive"}, r'no effect with optimizer\.name = "subtrack"'),
        ("galore_adamw", {"projector": "pca"}, r"optimizer\.projector 'pca' is unknown"),
    ],
)
def test_what_has_no_effect_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        check_optimizer(PRESETS[name].Config(**settings))


@pytest.mark.parametrize("name", PRESETS)
def test_every_default_is_coherent(name):
    check_optimizer(PRESETS[name].Config())
