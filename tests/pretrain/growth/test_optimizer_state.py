"""growth.optimizer: what of the optimizer's state the grown checkpoint has, and that runs go on from it exactly."""

import pytest
import torch
from growth_runs import (
    GALORE,
    GALORE8,
    GROWS,
    LAST,
    checkpoint,
    ending,
    grown_run,
    rewound,
    state,
    tensors,
    tiny_config,
)
from support import logged

OPTIMIZERS = {
    "adamw": [],
    "galore": GALORE,
    "galore8": GALORE8,
    # Of the factors, those beside the feed-forward's dimension have 8-bit moments.
    "adamw8bit": ["--optimizer.name=adamw8bit", "--model.ffn_dim=600"],
    # Its moments restart with their basis and are counted by themselves.
    "frugal": ["--linear.name=dense", "--optimizer.name=frugal", "--optimizer.rank=8", "--optimizer.update_proj_gap=7"],
}
MODES = ["reset", "copy", "copy_reset_step"]
CASES = [(optimizer, mode) for optimizer in ("adamw", "galore", "galore8") for mode in MODES]
CASES += [("frugal", "copy_reset_step"), ("adamw8bit", "copy"), ("adamw8bit", "copy_reset_step")]


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Undisturbed runs by optimizer and growth.optimizer, with a checkpoint every second step."""
    folder = tmp_path_factory.mktemp("modes")
    done: dict = {}

    def run(optimizer, mode):
        if (optimizer, mode) not in done:
            home = folder / f"{optimizer}-{mode}"
            options = [*OPTIMIZERS[optimizer], f"--growth.optimizer={mode}"]
            config = tiny_config(home, corpus)
            done[optimizer, mode] = config, options, grown_run(config, home / "run", *options, checkpoint__every=2)
        return done[optimizer, mode]

    return run


@pytest.mark.parametrize(("optimizer", "mode"), CASES)
def test_state_in_the_grown_checkpoint(runs, optimizer, mode):
    *_, run = runs(optimizer, mode)
    small, grown = tensors(checkpoint(run, GROWS)), tensors(checkpoint(run, GROWS, grown=True))
    found = {name: tensor for name, tensor in grown.items() if name.startswith("optimizer.")}
    steps = state(checkpoint(run, GROWS, grown=True))["updates"]
    assert steps == (GROWS if mode == "copy" else 0)
    if mode == "reset":
        assert not found
        return
    expected = {name: tensor for name, tensor in small.items() if name.startswith("optimizer.")}
    expected |= {n.replace(".layers.0.", ".layers.1."): t for n, t in expected.items() if ".layers.0." in n}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if mode == "copy_reset_step" and name.endswith((".updates", ".count")):
            assert tensor > 0
            tensor = torch.zeros_like(tensor)
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    in_codes = any(tensor.dtype == torch.uint8 for name, tensor in found.items() if ".layers." in name)
    assert in_codes == (optimizer in ("galore8", "adamw8bit"))
    if optimizer != "adamw":
        assert found["optimizer.updates"] == steps


@pytest.mark.parametrize(("optimizer", "mode"), CASES)
def test_the_second_stage_resumes_exactly(runs, tmp_path, optimizer, mode):
    config, options, run = runs(optimizer, mode)
    rerun = rewound(run, tmp_path / "run", f"step-{GROWS + 4:08d}")
    grown_run(config, rerun, *options, checkpoint__every=2)
    assert ending(rerun) == ending(run)
    updates = state(checkpoint(run, LAST))["updates"]
    assert updates == (LAST if mode == "copy" else LAST - GROWS)
    if optimizer != "adamw":
        assert tensors(checkpoint(run, LAST))["optimizer.updates"] == updates


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "galore8"])
def test_the_state_decides_how_the_run_goes_on(runs, optimizer):
    """The first step after growth starts from the same weights whatever the mode; the next ones do not."""
    losses = [list(logged(runs(optimizer, mode)[2]).values()) for mode in MODES]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert losses[one][: GROWS + 1] == losses[other][: GROWS + 1]
        assert losses[one][GROWS + 1 :] != losses[other][GROWS + 1 :]
    assert all(float(run[-1]) < float(run[0]) for run in losses)
