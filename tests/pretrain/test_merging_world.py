"""Linears that merge, on two processes as on one, over merges and pauses around them."""

from pathlib import Path

import pytest
from processes import train_world
from support import logged, train_here, write_tiny

STEPS = 16
LINEARS = {"relora": ["--linear.name=relora", "--linear.rank=8", "--linear.merge_every=5"]}
OPTIMIZERS = ["adamw", "adamw8bit"]
KINDS = {f"{linear}-{name}": (linear, name) for linear in LINEARS for name in OPTIMIZERS}


@pytest.fixture(scope="module")
def both(corpus, tmp_path_factory) -> Path:
    """Runs with one process (`one/<kind>`) and with two, paused before, at and after merges (`two/<kind>`)."""
    folder = tmp_path_factory.mktemp("world")
    config, runs = write_tiny(folder, corpus), []
    for kind, (linear, name) in KINDS.items():
        options = [*LINEARS[linear], f"--optimizer.name={name}", "--model.ffn_dim=64"]
        train_here(config, *options, f"--run.dir={folder}/one/{kind}", f"--train.max_steps={STEPS}")
        pauses = (4, 5, 11, STEPS)
        runs += [[*options, f"--run.dir={folder}/two/{kind}", f"--train.max_steps={pause}"] for pause in pauses]
    train_world(2, config, runs)
    return folder


@pytest.mark.slow
@pytest.mark.fault("F22")
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(both, kind):
    one, two = logged(both / "one" / kind), logged(both / "two" / kind)
    assert len(one) == len(two) == STEPS
    # 8-bit codes jump where a last bit of a sum of two orders decides between neighbours.
    assert max(abs(float(one[step]) - float(two[step])) for step in one) < (1e-3 if "8bit" in kind else 1e-5)
