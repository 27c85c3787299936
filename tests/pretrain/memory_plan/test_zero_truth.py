"""The plan of AdamW under ZeRO against the real DeepSpeed on a CPU, in one process and in two: every live tensor.

The messages are small, so that weights, state, sums, buckets and activations are of one order of size.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from zero_steps import Phases, measured, planned

from pretrain.machine import distributed
from pretrain.memory_plan.memory import MemoryPlan

TOTAL, ITEM, SMALL = 0.03, 0.05, 0.05
"""Tolerances of a phase's peak, and of each item that is at least SMALL of it."""

ITEMS = {
    "forward": ("weights", "masters", "moments", "accumulators", "gradients", "reduction"),
    "backward": ("masters", "moments"),
    "update": ("weights", "masters", "moments", "accumulators", "gradients", "reduction"),
}
"""What can be told apart at each phase's worst moment. Sums and messages that a backward pass makes have no name in it;
weights that stage 3 gathers have none at all."""

KINDS = {
    f"stage{stage}-{dtype}{'-offload' * offload}": [
        f"--parallel.zero_stage={stage}",
        f"--train.dtype={dtype}",
        *["--parallel.offload=optimizer"] * offload,
    ]
    for stage in (1, 2, 3)
    for dtype in ("bf16", "fp32")
    for offload in (False, True)
}
QUICK = "stage2-fp32"


def compare(plan: MemoryPlan, ranks: list[Phases], gathers: bool) -> None:
    """Each phase with the rank that takes most in it."""
    for phase, moment in plan.phases.items():
        total, items = max((rank[phase] for rank in ranks), key=lambda peak: peak[0])
        assert moment.total == pytest.approx(total, rel=TOTAL), phase
        for item in ITEMS[phase]:
            size, real = moment.items.get(item, 0), items.get(item, 0)
            if max(size, real) >= SMALL * total and not (gathers and item == "weights" and phase != "update"):
                assert size == pytest.approx(real, rel=ITEM), f"{item} in {phase}"
    assert plan.total == pytest.approx(max(total for rank in ranks for total, _ in rank.values()), rel=TOTAL)


@pytest.mark.parametrize(
    "kind", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_one_process(kind: str) -> None:
    compare(planned(KINDS[kind], 1), [measured(KINDS[kind], distributed.start())], gathers=False)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, list[Phases]]:
    """Of each kind, what either of two processes measured."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tests" / "zero_steps.py"), str(folder), *(",".join(kind) for kind in KINDS.values())]
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parents[2])])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {kind: [rank[index] for rank in ranks] for index, kind in enumerate(KINDS)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes(two: dict[str, list[Phases]], kind: str) -> None:
    compare(planned(KINDS[kind], 2), two[kind], gathers="stage3" in kind)
