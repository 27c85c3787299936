"""`python -m tests.plan_table [NAME ...]`: the plan of configs/NAME.toml against the real step on fake tensors.

Without names, of the recipes for one GPU; as Markdown. Every configuration at ZeRO stage 0 in one process, on a GPU's
paths.
"""

import sys
from pathlib import Path

from kernels.sparse_low_rank_linear.choice import Choice
from pretrain.config import load_config
from pretrain.memory_plan.memory import plan_memory
from tests.fake_step import PERSISTENT, fake_step

CONFIGS = Path(__file__).parents[1] / "configs"

SMALL = 100e6
"""Items of fewer bytes are left out."""


def row(name: str) -> str:
    config = load_config(CONFIGS / f"{name}.toml", ["--parallel.zero_stage=0"])
    step = fake_step(config, choice=Choice(), cuda=True)
    plan = plan_memory(config)
    phase = plan.worst
    total, items = step.peaks[phase]
    planned = {item: plan.items.get(item, 0) for item in PERSISTENT}
    planned["working"] = plan.total - sum(planned.values())
    off = {
        item: abs(size / items.get(item, 0) - 1) if items.get(item, 0) else 1.0
        for item, size in planned.items()
        if max(size, items.get(item, 0)) >= SMALL
    }
    parts = ", ".join(f"{item} {items.get(item, 0) / 1e9:.2f}" for item in off)
    difference = f"{100 * (plan.total / total - 1):+.2f} %"
    totals = f"{plan.total / 1e9:.2f} | {total / 1e9:.2f}"
    return f"| `{name}` | {totals} | {difference} | {100 * max(off.values()):.1f} % | {parts} |"


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in CONFIGS.glob("llama_7b_*gb_*.toml"))
    print("| configuration | planned | fake step | difference | largest of an item | items of the fake step |")
    print("|---|---|---|---|---|---|")
    for name in names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
