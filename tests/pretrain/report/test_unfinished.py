"""The summary of a run that has written none."""

import pytest

from model.counts import count_parameters
from pretrain.config import load_config
from pretrain.report.logged import partial_summary


@pytest.mark.parametrize("stage", [0, 1])
def test_the_parameters_are_those_of_the_model_that_trains(tiny, stage):
    config = load_config(str(tiny), ["--growth.enabled=true", "--growth.factor=2", "--growth.at=0.5"])
    trained = config.stages[stage].config
    records = [{"step": 1, "train/loss": 3.0, "growth/layers": trained.model.n_layers}]
    summary = partial_summary(records, config, [])
    assert summary["parameters"] == count_parameters(trained.model, trained.linear)["total"]
    assert len({count_parameters(s.config.model, s.config.linear)["total"] for s in config.stages}) == 2
