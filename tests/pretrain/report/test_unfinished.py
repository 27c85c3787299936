"""The summary of a run that has written none."""

import pytest

from model.counts import count_parameters
from pretrain.config import load_config
from pretrain.report.logged import partial_summary

GROWTHS = {"depth": ["--growth.factor=2"], "width": ["--growth.layers=[2]", "--growth.dim=16", "--growth.n_heads=1"]}


@pytest.mark.parametrize("growth", GROWTHS.values(), ids=GROWTHS)
@pytest.mark.parametrize("stage", [0, 1])
def test_the_parameters_are_those_of_the_model_that_trains(tiny, stage, growth):
    config = load_config(str(tiny), ["--growth.enabled=true", *growth, "--growth.at=0.5"])
    trained = config.stages[stage].config
    records = [{"step": config.stages[stage].end, "train/loss": 3.0, "growth/layers": trained.model.n_layers}]
    summary = partial_summary(records, config, [])
    assert summary["parameters"] == count_parameters(trained.model, trained.linear)["total"]
    assert len({count_parameters(s.config.model, s.config.linear)["total"] for s in config.stages}) == 2
