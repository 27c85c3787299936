"""Growth late in a warm-up-stable-decay run (arXiv 2511.04981): a shallow model for four fifths, then the deep one."""

import pytest
import torch
from growth_runs import LAST, checkpoint, grown_run, summary, tensors, tiny_config
from support import logged

from pretrain.checkpoint.read import Checkpoint, load_model

GROWS = 10  # 0.8 of 12, to the nearest step
WSD = ["--schedule.name=wsd", "--schedule.decay_fraction=0.2", "--schedule.warmup_fraction=0.0"]
LATE = ["--growth.at=0.8", "--growth.schedule=continue", "--growth.optimizer=copy", "--growth.factor=4", *WSD]
SILENT = {
    "from one layer": ["--growth.layers=[1]", "--model.n_layers=3", "--growth.operator=zero"],
    "by one layer": ["--growth.layers=[2]", "--model.n_layers=3", "--growth.operator=zero", "--growth.order=gradual"],
    "by a copy": ["--growth.layers=[2]", "--model.n_layers=3", "--growth.operator=gradual"],
}
CASES = [pytest.param(name, marks=() if name == "by one layer" else pytest.mark.slow) for name in SILENT]


@torch.no_grad()
def logits(folder):
    model = load_model(Checkpoint(folder), torch.device("cpu"))
    return model(torch.randint(320, (4, 32), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", CASES)
def test_a_late_growth_keeps_the_function_and_trains(corpus, tmp_path, name):
    run = grown_run(tiny_config(tmp_path, corpus), tmp_path / "run", *LATE, *SILENT[name])
    small, grown = checkpoint(run, GROWS), checkpoint(run, GROWS, grown=True)
    before, after = logits(small), logits(grown)
    assert torch.allclose(after, before, rtol=1e-5, atol=1e-6) == (name != "by a copy")

    stages = summary(run)["stages"]
    assert [(stage["n_layers"], stage["steps"]) for stage in stages] == [
        (1 if name == "from one layer" else 2, GROWS),
        (3, LAST - GROWS),
    ]
    # The rate goes on as if nothing had happened: stable to 0.8 of the steps, then a line to 0.
    rates = [float(rate) for rate in logged(run, "train/lr").values()]
    assert rates == pytest.approx([1e-3] * 9 + [1e-3 * part for part in (2 / 2.4, 1 / 2.4, 0)])

    start, end = tensors(grown), tensors(checkpoint(run, LAST))
    for part in ("attention.o_proj.B", "feed_forward.down_proj.values", "attention.q_proj.A"):
        name_of = f"model.layers.2.{part}"
        assert (start[name_of] != end[name_of]).float().mean() > 0.5, part
