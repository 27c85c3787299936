"""How linears with sparse entries compute in a run: chosen when it starts, recorded in it, kept by every resume.

Every choice computes the same up to rounding; which is fastest depends on shapes, batch, memory and device.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from kernels.sparse_low_rank_linear.choice import Choice, Keep
from kernels.sparse_low_rank_linear.csr import available as csr_available
from model.errors import UserError
from model.linear.support.element import ElementSparse
from model.linear.supported import SupportedLinear
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.machine.hardware import free_bytes


def decide(
    model: Transformer, config: Config, recorded: dict[str, Any], micro_steps: int, device: torch.device
) -> dict[str, Any]:
    """The record of what is chosen: the device's type and, by shape, the fields of a Choice. Empty without linears.

    `recorded` is that of the checkpoint which the run goes on from, or empty; where it can be followed it stands.
    `micro_steps` is how many backward passes one optimizer step takes in one process.
    """
    linears = choosing_linears(model)
    if not linears or can_follow(recorded, device):
        return recorded if linears else {}
    choices = {shape_name(linear): _choose(linear, model.compute_dtype, config, device) for linear in linears}
    built = [linear for linear in linears if choices[shape_name(linear)].path == "dense"]
    keep, accumulate = how_long(built, model, config, micro_steps, free_bytes(device))
    for shape, choice in choices.items():
        if choice.path == "dense":
            choices[shape] = replace(choice, keep=keep, accumulate=accumulate)
    return {"device": device.type, "shapes": {shape: choice.to_json() for shape, choice in choices.items()}}


def can_follow(record: dict[str, Any], device: torch.device) -> bool:
    """Whether a record, or an empty one, is of this type of device, and this build of PyTorch has what it asks for."""
    csr = any(fields["path"] == "csr" for fields in record.get("shapes", {}).values())
    return record.get("device") == device.type and (not csr or csr_available())


def apply(model: Transformer, record: dict[str, Any]) -> None:
    """Let every linear compute as the record says."""
    for linear in choosing_linears(model):
        fields = record["shapes"].get(shape_name(linear))
        if fields is None:
            raise UserError(f"state.json records no way to compute {shape_name(linear)}; it is of another model")
        _support(linear).choice = Choice(**fields)


def recorded(record: dict[str, Any]) -> Callable[[tuple[int, int, int]], Choice]:
    """The Choice of an (out, in, rank) in a record; the default for a model without linears that choose."""
    shapes = {key: Choice(**fields) for key, fields in record.get("shapes", {}).items()}
    return lambda shape: shapes[_shape_name(*shape)] if shapes else Choice()


def describe(record: dict[str, Any]) -> Iterator[str]:
    """One line per shape (out, in) and way to compute, with the ranks between which its linears are."""
    ranks: dict[tuple[str, Choice], list[int]] = {}
    for name, fields in record.get("shapes", {}).items():
        shape, _, rank = name.partition(" rank ")
        ranks.setdefault((shape, Choice(**fields)), []).append(int(rank))
    for (shape, choice), found in ranks.items():
        shape += f" rank {min(found)}" + (f" to {max(found)}" if len(found) > 1 else "")
        if choice.path == "csr":
            yield f"linears {shape}: W never built, its parts multiplied one after the other (csr)"
            continue
        kept = {"none": "built twice", "layer": "kept for the backward pass", "step": "kept over the step"}[choice.keep]
        summed = ", its gradient summed over micro-steps" if choice.accumulate else ""
        yield f"linears {shape}: W{' in one kernel' if choice.fused else ''} {kept}{summed}"


@contextlib.contextmanager
def weights_kept(model: Transformer, one_token: bool = False) -> Iterator[None]:
    """Inside, where parameters do not change, every W is built once, if all of them fit half of the free memory.

    Linears that compute without W go on without; with `one_token`, which says that most forward passes are of a single
    one, they get theirs too: the calls on a csr path cost more then than reading W does (measured up to 2048 x 2048).
    """
    device = next(model.parameters()).device
    built = []  # supports whose W is built, each with its choice so far and the one in force
    for linear in choosing_linears(model):
        support = _support(linear)
        choice = support.choice or support.choose(1, linear.rank, model.compute_dtype, device)
        if one_token and choice.path == "csr":
            choice = Choice()
        if choice.path == "dense":
            built.append((support, support.choice, choice))
    weights = sum(support.shape[0] * support.shape[1] for support, *_ in built) * model.compute_dtype.itemsize
    fits = weights <= free_bytes(device) / 2
    # Without room, training's choice stands where it keeps such W; kept codes are smaller, and not what is read here.
    if not fits and all(linear.eight_bit is None for linear in choosing_linears(model)):
        yield
        return
    for support, _, choice in built:
        support.choice = replace(choice, keep="step" if fits else "none")
    try:
        yield
    finally:
        for support, before, _ in built:
            support.choice = before
            support.cache.clear()


def choosing_linears(model: Transformer) -> list[SupportedLinear]:
    """Linears that there is something to choose for."""
    return [m for m in model.modules() if isinstance(m, SupportedLinear) and isinstance(m.support, ElementSparse)]


def _support(linear: SupportedLinear) -> ElementSparse:
    assert isinstance(linear.support, ElementSparse)
    return linear.support


def shape_name(linear: SupportedLinear) -> str:
    return _shape_name(linear.out_features, linear.in_features, linear.rank)


def _shape_name(n_out: int, n_in: int, rank: int) -> str:
    return f"{n_out}x{n_in} rank {rank}"


def _choose(linear: SupportedLinear, dtype: torch.dtype, config: Config, device: torch.device) -> Choice:
    tokens = config.train.micro_batch_size * config.train.seq_len
    path = "dense" if config.train.products != "bf16" else config.kernels.path
    if path == "csr":
        if device.type != "cpu" or dtype != torch.float32 or not csr_available():
            raise UserError('kernels.path = "csr" works on a CPU in fp32 with MKL only; set kernels.path = "auto"')
        return Choice(path="csr")
    choice = _support(linear).choose(tokens, linear.rank, dtype, device)
    return Choice() if path == "dense" and choice.path == "csr" else choice


def how_long(
    built: list[SupportedLinear], model: Transformer, config: Config, micro_steps: int, free: int
) -> tuple[Keep, bool]:
    """How long W is kept, and whether its gradient is summed: as long as the budget allows and saves work.

    `free` is the device's free memory in bytes.
    """
    kernels = config.kernels
    numels = [linear.in_features * linear.out_features for linear in built]
    codes = config.train.products != "bf16"
    weights = sum(numels) * (1 if codes else model.compute_dtype.itemsize)
    # At stage 1 to 3 DeepSpeed counts on a gradient of every parameter in every micro-step; at 3 weights come and go.
    stage = config.parallel.zero_stage
    may_sum = stage == 0 and micro_steps > 1 and kernels.sum_gradients != "factors"
    budget = kernels.cache_budget * free
    # With every block recomputed, no more than one layer's W are alive at a time.
    at_once = weights / len(model.layers) if model.checkpoint_every == 1 else weights
    keep: Keep = "layer" if at_once <= budget else "none"
    if stage < 3 and micro_steps > 1 and weights <= budget:
        keep = "step"
    if kernels.keep_weight != "auto":
        keep = kernels.keep_weight
    summed = keep == "step" and may_sum and (kernels.sum_gradients == "dense" or weights + 4 * sum(numels) <= budget)
    return keep, summed
