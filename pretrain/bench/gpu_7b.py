"""Parts of the check on a GPU: every 7B recipe for a consumer card trains, saves and resumes in that card's memory.

Each recipe, configs/llama_7b_<GiB>gb_<recipe>.toml, is a part of its own: processes with the memory of its card.
Fewer micro-steps than the recipe's leave the peak as it is: sums begin with the second. The recipes of the largest card
have two more: what activations in host memory cost in time, and what the larger micro-batch gives; and how much faster
products in eight bits are.
"""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.bench.gpu_training import QUIET, RESUME_TOLERANCE, corpus, losses
from pretrain.bench.part import ROOT, Check, Failed, Part, Skipped
from pretrain.machine.memory import CAP, readable

NAME, OFFLOAD, PRODUCTS = "7B recipes", "7B offload", "7B products"
STEPS, OFFLOAD_STEPS = 20, 4
MICRO_STEPS = 4
STORED = ("weights", "support", "moments", "projections")
"""Items of a plan that a checkpoint holds."""
PRODUCTS_TOLERANCE = 0.02
"""Largest relative difference of the first updates' losses."""
RECIPE_SECONDS = 240.0
"""Estimated for one recipe; what is left beyond it is for the timings that follow."""
LATER_SECONDS = 60.0


def recipes() -> dict[str, Path]:
    """Shipped recipes by what follows llama_7b_ in their name, the smallest card first."""
    paths = sorted((ROOT / "configs").glob("llama_7b_*gb_*.toml"))
    return {path.stem.removeprefix("llama_7b_"): path for path in paths}


def parts() -> list[Part]:
    """A part for each recipe."""
    return [Part(f"{NAME}: {name}", partial(recipe, path), proof=False) for name, path in recipes().items()]


def offload_parts() -> list[Part]:
    """A part for each recipe of 24 GiB."""
    return [Part(f"{OFFLOAD}: {name}", partial(offload, path), proof=False) for name, path in _large().items()]


def products_parts() -> list[Part]:
    """A part for each recipe of 24 GiB."""
    return [Part(f"{PRODUCTS}: {name}", partial(products, path), proof=False) for name, path in _large().items()]


def _large() -> dict[str, Path]:
    return {name: path for name, path in recipes().items() if card_gib(path) == 24}


def recipe(path: Path, check: Check) -> dict[str, Any]:
    """Half of the steps, a checkpoint, and the other half from it: tokens/s, and peak memory against the plan."""
    card = card_gib(path)
    overrides = [*_shortened(path), *check.small]
    figures = _planned(check, path, card, overrides)
    _require_room(check, path, card, figures)
    run, data = check.work / path.stem, corpus(check)
    options = [f"--run.dir={run}", f"--data.path={data}", *QUIET, "--metrics.every=1", *overrides]
    environment = {CAP: str(card), "HF_HUB_OFFLINE": "1"}
    try:
        for last in (STEPS // 2, STEPS):
            command = ["-m", "pretrain", "train", str(path), *options, f"--train.max_steps={last}"]
            done = check.python(*command, limit=check.seconds_left - LATER_SECONDS, **environment)
            if done.status is None:
                raise Skipped(f"the time did not suffice to train to step {last}")
            output = done.require(f"training to step {last}")
            if last == STEPS and f"at step {STEPS // 2} (" not in output:
                raise Failed("the second half did not begin at the checkpoint of the first")
        found = _figures(run, card)
    finally:
        shutil.rmtree(run, ignore_errors=True)
    found["planned_on_card_bytes"] = figures["memory_bytes"]["total"]
    if not all(math.isfinite(loss) for loss in found["losses"]):
        raise Failed("a loss is not finite", **found)
    return found


def offload(path: Path, check: Check) -> dict[str, Any]:
    """Tokens/s and peak memory of some updates: `on`, with activations in host memory; `off`, without, in whatever
    memory that takes, where the GPU has it; `off_on_card`, with the largest micro-batch that fits the card without.
    All updates have as many tokens.
    """
    card, found = card_gib(path), dict[str, Any]()
    overrides = [*_shortened(path), *check.small]
    figures = _planned(check, path, card, overrides)
    _require_room(check, path, card, figures)
    away, here = (f"--train.offload_activations={where}" for where in ("true", "false"))
    smaller = f"--train.micro_batch_size={_fitting(check, path, card, [*overrides, here])}"
    ways = {"on": ([away], str(card)), "off": ([here], ""), "off_on_card": ([here, smaller], str(card))}
    if not _has_room(check, _planned(check, path, card, [*overrides, here])):
        del ways["off"]
    for name, (changes, cap) in ways.items():
        found[name] = _some_updates(check, path, name, [*overrides, *changes], cap, found) | {"changes": changes}
    if "off" not in found:
        return found
    pairs = zip(found["on"]["losses"], found["off"]["losses"], strict=True)
    found["largest_loss_difference"] = max(abs(one - other) for one, other in pairs)
    if not found["largest_loss_difference"] < RESUME_TOLERANCE:
        raise Failed("activations that were in host memory give another loss", **found)
    return found


def products(path: Path, check: Check) -> dict[str, Any]:
    """Tokens/s and peak memory of some updates with products in bf16, in INT8, and, where the GPU has it, in FP8;
    `speedup` of each over bf16, and the largest relative difference of a loss from it."""
    import torch

    from kernels.row_codes.format import multiplies_fp8

    card, found = card_gib(path), dict[str, Any]()
    overrides = [*_shortened(path), *check.small]
    _require_room(check, path, card, _planned(check, path, card, overrides))
    too = "--train.eight_bit_weight_gradients=true"
    ways = {"bf16": [], "int8": ["--train.products=int8"], "int8 all": ["--train.products=int8", too]}
    if multiplies_fp8(torch.device(check.device)):
        ways |= {"fp8": ["--train.products=fp8"], "fp8 all": ["--train.products=fp8", too]}
    for name, changes in ways.items():
        found[name] = _some_updates(check, path, name, [*overrides, *changes], str(card), found)
        found[name]["speedup"] = found[name]["tokens_per_second"] / found["bf16"]["tokens_per_second"]
        pairs = zip(found[name]["losses"], found["bf16"]["losses"], strict=True)
        found[name]["largest_loss_difference"] = max(abs(one / other - 1) for one, other in pairs)
        if not found[name]["largest_loss_difference"] < PRODUCTS_TOLERANCE:
            raise Failed(f"products in {name} give another loss", **found)
    return found


def _some_updates(
    check: Check, path: Path, name: str, overrides: list[str], cap: str, found: dict[str, Any]
) -> dict[str, Any]:
    """What OFFLOAD_STEPS updates came to, within the memory `cap`; Skipped or Failed with what was `found` before."""
    run = check.work / f"{path.stem}_{name.replace(' ', '_')}"
    options = [f"--run.dir={run}", f"--data.path={corpus(check)}", *QUIET, "--metrics.every=1", *overrides]
    command = ["-m", "pretrain", "train", str(path), *options, f"--train.max_steps={OFFLOAD_STEPS}"]
    try:
        done = check.python(*command, limit=check.seconds_left - LATER_SECONDS, **{CAP: cap, "HF_HUB_OFFLINE": "1"})
        if done.status is None:
            raise Skipped(f"the time did not suffice to train {name}", **found)
        done.require(f"training {name}", **found)
        return _figures(run, card_gib(path))
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _fitting(check: Check, path: Path, card: int, overrides: list[str]) -> int:
    """The largest micro-batch that fits the card by the plan, of the configuration's and its halves."""
    from pretrain.config import load_config

    size = load_config(path, overrides).train.micro_batch_size
    while size > 1 and size % 2 == 0:
        figures = _planned(check, path, card, [*overrides, f"--train.micro_batch_size={size}"])
        if figures["memory_bytes"]["total"] + figures["reserve"] <= card * 2**30:
            break
        size //= 2
    return size


def card_gib(path: Path) -> int:
    """GiB of the card that a recipe's file is named after."""
    found = re.search(r"_(\d+)gb_", path.name)
    assert found is not None
    return int(found[1])


def _shortened(path: Path) -> list[str]:
    """Overrides: a few micro-steps per update where the recipe accumulates at all."""
    from pretrain.config import load_config

    train = load_config(path).train
    micro_steps = min(MICRO_STEPS, train.global_batch_size // train.micro_batch_size)
    return [f"--train.global_batch_size={train.micro_batch_size * micro_steps}", f"--eval.tokens={train.seq_len}"]


def _planned(check: Check, path: Path, card: int, overrides: list[str]) -> dict[str, Any]:
    """`sparlow plan --json` of the shortened run."""
    command = ["-m", "pretrain", "plan", str(path), *overrides, "--gpu-memory", f"{card}GiB", "--json"]
    return json.loads(check.python(*command, limit=60).require("plan"))


def _require_room(check: Check, path: Path, card: int, figures: dict[str, Any]) -> None:
    """Skipped where the check has too little time left, the disk too little space, or the GPU less than the card."""
    if not check.small and check.seconds_left < RECIPE_SECONDS + LATER_SECONDS:
        raise Skipped(
            f"{check.seconds_left:.0f} s are left and it takes about {RECIPE_SECONDS:.0f}: "
            f'bash launch/gpu_check.sh --only "{NAME}" has the time'
        )
    checkpoint = sum(figures["memory_bytes"].get(item, 0) for item in STORED)
    free = shutil.disk_usage(check.work).free
    if free < 2 * checkpoint:
        raise Skipped(
            f"{check.work} has {readable(free)} free and two checkpoints take {readable(2 * checkpoint)}: name a "
            "larger folder with TMPDIR"
        )
    if check.device == "cuda":
        import torch

        has = torch.cuda.get_device_properties(0).total_memory / 2**30
        if has < card - 1:  # a card sold as 24 GiB reports a little less
            raise Skipped(f"this GPU has {has:.1f} GiB, the recipe is for {card}")


def _has_room(check: Check, figures: dict[str, Any]) -> bool:
    """Whether this GPU has the memory of a plan."""
    if check.device != "cuda":
        return True
    import torch

    needed = figures["memory_bytes"]["total"] + figures["reserve"]
    return needed <= torch.cuda.get_device_properties(0).total_memory


def _figures(run: Path, card: int) -> dict[str, Any]:
    """What the run came to; `fits_card` counts what PyTorch reserved and what is assumed for CUDA beside it."""
    from pretrain.memory_plan.cards import CONTEXT

    summary = json.loads((run / "summary.json").read_text())
    keys = "tokens_per_second peak_memory_bytes peak_reserved_bytes peak_resident_bytes planned_memory_bytes"
    peak, reserved = summary["peak_memory_bytes"], summary["peak_reserved_bytes"]
    return {
        "card_gib": card,
        "steps": summary["step"],
        **{key: summary[key] for key in [*keys.split(), "skipped_steps"]},
        "plan_error": None if peak is None else peak / summary["planned_memory_bytes"] - 1,
        "fits_card": None if reserved is None else reserved + CONTEXT <= card * 2**30,
        "losses": list(losses(run).values()),
    }
