"""Figures of the weights' spectra that a run logs, and how much of a subspace its new bases keep."""

import json

import pytest
import torch
from optim_drive import gradients, optimizer_of
from support import train_here
from torch import nn

from model.errors import UserError
from model.linear import build_linear
from model.linear.sparse_low_rank import SparseLowRank
from pretrain.config import load_config
from pretrain.loop.spectra import chosen_layers, ranks_of, spectra_of
from pretrain.optim.config import MatrixConfig


def test_the_parts_of_a_sparse_low_rank_linear():
    """Each part's figures are those of that part, built on its own."""
    linear = build_linear(SparseLowRank.Config(name="sparse_low_rank", rank=3, alpha=6.0, density=0.2), 24, 16, "x")
    linear.reset_parameters(0)
    with torch.no_grad():
        linear.B.normal_()
    product = 2.0 * linear.B @ linear.A
    parts = {"weight": linear.dense_weight(), "low_rank": product, "sparse": linear.dense_weight() - product}
    found = spectra_of(linear, "kind")
    assert found.keys() == {f"spectrum/{part}/kind" for part in parts}
    for part, matrix in parts.items():
        values = torch.linalg.svdvals(matrix.detach().double())
        measured = found[f"spectrum/{part}/kind"]
        torch.testing.assert_close(measured.double(), values[: len(measured)], rtol=1e-4, atol=1e-5)
        values = values[values > 1e-6 * values[0]]
        p = values / values.sum()
        expected = (values.square().sum() / values[0] ** 2).item(), torch.exp(-(p * p.log()).sum()).item()
        ranks = ranks_of({"x": [measured]})
        assert (ranks["x/stable_rank"], ranks["x/effective_rank"]) == pytest.approx(expected, rel=1e-4)


def test_layers_are_spread_over_the_model():
    assert chosen_layers(3) == [0, 1, 2]
    assert chosen_layers(32) == [0, 10, 21, 31]


def test_a_run_logs_them_when_they_are_due_and_at_its_end(tiny, tmp_path):
    train_here(tiny, "--metrics.spectra_every=2", "--schedule.total_steps=3", "--metrics.every=10")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = {r["step"]: {tag for tag in r if tag.startswith("spectrum/")} for r in records}
    assert steps[1] == set()
    assert steps[2] == steps[3]
    assert len(steps[2]) == 7 * 3 * 2  # kinds of linears, parts of each, figures
    assert all(1 <= records[-1][tag] <= 32 for tag in steps[3])


def test_tensorboard_has_the_singular_values_themselves(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_here(tiny, "--metrics.spectra_every=1", "--schedule.total_steps=1", "--metrics.tensorboard=true")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = board.Tags()["histograms"]
    assert {tag.split("/")[1] for tag in tags} == {"weight", "low_rank", "sparse"}
    layers = load_config(tiny).model.n_layers
    (event,) = board.Histograms("spectrum/weight/attention.q_proj/singular_values")
    assert (event.step, event.histogram_value.num) == (1, layers * load_config(tiny).model.dim)


def test_sharded_weights_have_none(tiny):
    with pytest.raises(UserError, match=r"metrics\.spectra_every does not work at parallel\.zero_stage = 3"):
        train_here(tiny, "--metrics.spectra_every=2", "--parallel.zero_stage=3")


@pytest.mark.parametrize("update", ["step", "per_layer"])
def test_how_much_of_a_subspace_new_bases_keep(update):
    """All of it where the gradient stays, rank / m on average where each is new; first bases do not count."""
    found = {}
    for kind in ("steady", "changing"):
        config = MatrixConfig(
            name="galore_adamw", rank=4, update_proj_gap=2, refresh_stagger=False, update=update, projector="svd"
        )
        weight = nn.Parameter(torch.zeros(40, 32))
        optimizer = optimizer_of(config, weight)
        figures = []
        for step, gradient in enumerate(gradients((40, 32), 40, seed=3)):
            (weight * (gradients((40, 32), 1)[0] if kind == "steady" else gradient)).sum().backward()
            optimizer.step()
            figures.append(optimizer.figures())
            assert ("optimizer/refresh_overlap" in figures[-1]) == (step > 0 and step % 2 == 0)
        overlaps = [f["optimizer/refresh_overlap"] for f in figures if "optimizer/refresh_overlap" in f]
        found[kind] = sum(overlaps) / len(overlaps)
    assert found["steady"] == pytest.approx(1, abs=1e-4)
    assert found["changing"] == pytest.approx(4 / 32, abs=0.05)
