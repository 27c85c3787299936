"""Growth of rank and density of a model's linears, its map unchanged."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from kernels.support import TileSupport
from model.config import ModelConfig
from model.counts import in_block, linear_shapes
from model.errors import UserError
from model.growth.plan import GrowthPlan
from model.growth.tensors import GrownTensor
from model.linear import LINEARS, LinearConfig
from model.linear.low_rank import require_rank_fits
from model.linear.ranks import deciding, linear_at
from model.linear.support.element import draw_positions

LINEAR = re.compile(r"(layers\.\d+\.(?:attention|feed_forward)\.\w+_proj)\.")

State = dict[str, Tensor]


def grow_linears(
    tensors: Iterable[GrownTensor], model: ModelConfig, old: LinearConfig, new: LinearConfig, seed: int
) -> Iterator[GrownTensor]:
    """Turn the state of a model with linears `old` into that of `model` with `new`, the function unchanged.

    `tensors` as `grow_tensors` gives them: those of one linear follow each other. One linear is in memory at a time.
    UserError where the change is no growth.
    """
    require_linears_growable(old, new)
    old, new, shapes = in_block(model, old), in_block(model, new), linear_shapes(model)
    for name, group in groupby(tensors, key=lambda item: (match := LINEAR.match(item.name)) and match[1]):
        if name is None or (old == new and not getattr(new, "ranks", ())):
            yield from group
            continue
        items = {item.name.removeprefix(f"{name}."): item for item in group}
        state = {part: item.tensor for part, item in items.items()}
        for part, tensor in grow_linear(state, shapes[name], old, new, seed, name).items():
            more, before = tensor.nbytes - state[part].nbytes, items[part]
            # New rows of A and new positions are drawn; new columns of B and new values are zero.
            if part == "A" or part.startswith("support."):
                yield before._replace(tensor=tensor, drawn=before.drawn + more)
            else:
                yield before._replace(tensor=tensor, zeroed=before.zeroed + more)
        del items, state, before, tensor


def require_linears_growable(old: LinearConfig, new: LinearConfig) -> None:
    """UserError unless linears `old` can become `new` by more rank, more density or another alpha."""
    if old.name != new.name:
        raise UserError(f"growth: linear.name {old.name!r} cannot become {new.name!r}; keep it")
    for key in LINEARS[old.name].fixed:
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            raise UserError(f"growth: linear.{key} {before!r} cannot become {after!r}; keep it")
    if not hasattr(old, "support"):
        return
    if old.support != "element" and old.density != new.density:
        raise UserError(f"growth: linear.density cannot grow with linear.support {old.support!r}; keep {old.density}")


def require_ranks_growable(old: LinearConfig, new: LinearConfig, plan: GrowthPlan, parts: Iterable[str]) -> None:
    """UserError where a linear of the grown model has less rank than that which it is a copy of.

    `parts` are the names of the linears within a block. Their ranks are those that linear.rank and linear.ranks give to
    their own names in either model: a pattern of a layer says nothing of the copies of that layer.
    """
    for name, source in _copies(plan, parts):
        before, after = (getattr(linear_at(linear, at), "rank", 0) for linear, at in ((old, source), (new, name)))
        if after < before:
            raise UserError(
                f"growth: {name} has rank {after} by {_key(new, name)}, but it is a copy of {source}, which has "
                f"{before}; growth only adds, so give it {before} or more"
            )


def linears_alike(old: LinearConfig, new: LinearConfig, plan: GrowthPlan, parts: Iterable[str]) -> bool:
    """Whether every linear of the grown model is exactly like that which it is a copy of."""
    return all(linear_at(old, source) == linear_at(new, name) for name, source in _copies(plan, parts))


def _copies(plan: GrowthPlan, parts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The name of every linear of the grown model, and of the linear of the small one that it is a copy of."""
    for part in parts:
        yield from ((f"layers.{i}.{part}", f"layers.{source}.{part}") for i, source in enumerate(plan.source))


def _key(linear: LinearConfig, name: str) -> str:
    found = deciding(linear.ranks, name)
    return f"linear.ranks {found[0]!r}" if found else "linear.rank"


def grow_linear(
    state: State, shape: tuple[int, int], old: LinearConfig, new: LinearConfig, seed: int, name: str
) -> State:
    """Grow the state of one linear of `shape` (in, out), `name` its full name; what is drawn is from (seed, name).

    The rank that it has, that of the linear which it is a copy of, is the one of its factors.
    """
    (n_in, n_out), new = shape, linear_at(new, name)
    if "A" in state:
        old = old.model_copy(update={"rank": len(state["A"]), "ranks": ()})
    if old == new:
        return state
    grown = dict(state)
    if "A" in state:
        require_rank_fits(new.rank, n_in, n_out, name)
        # A linear without alpha does not scale its product.
        ratio = (old.alpha * new.rank) / (old.rank * new.alpha) if hasattr(new, "alpha") else 1.0
        grown["A"], grown["B"] = grow_rank(state["A"], state["B"], new, ratio, seed, name)
    size = LINEARS[new.name].count_entries(new, n_in, n_out) if "values" in state else 0
    if "values" in state and size != state["values"].numel():
        support = TileSupport(state["support.loc"], state["support.tile_ptr"], (n_out, n_in))
        support, grown["values"] = grow_density(support, state["values"], size, seed, f"{name}.support")
        grown["support.loc"], grown["support.tile_ptr"] = support.loc, support.tile_ptr
    return grown


def grow_rank(A: Tensor, B: Tensor, new: LinearConfig, ratio: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return A (rank, in) and B (out, rank) with ratio * B_old A_old = B A, of the rank of the linear `new`.

    B gets columns of zeros, A gets rows as a fresh linear has them, drawn from (seed, name). The new columns of B
    receive gradient in the first step, the new rows of A from the second. `ratio` = old scale / new scale goes into B:
    exact where it is a power of two, else to half a unit in the last place of each entry of B. UserError when the rank
    would shrink.
    """
    (old, n_in), rank = A.shape, new.rank
    if rank < old:
        raise UserError(f"growth: linear.rank {old} cannot grow to {rank}, which is less")
    rows = A.new_empty(rank - old, n_in)
    LINEARS[new.name].draw_rows(new, rows, B.shape[0], seed, f"{name}.A.from_{old}")
    scaled = B if ratio == 1 else (B.double() * ratio).to(B.dtype)
    return torch.cat([A, rows]), torch.cat([scaled, B.new_zeros(B.shape[0], rank - old)], dim=1)


def grow_density(support: TileSupport, values: Tensor, size: int, seed: int, name: str) -> tuple[TileSupport, Tensor]:
    """Return a support of `size` entries that holds the old one, and its values: the old ones, and 0 at new positions.

    New positions are drawn uniformly from the free ones, from (seed, name): if every set was equally likely before, it
    is so after. UserError when the support would shrink.
    """
    shape, old = support.shape, support.nnz
    if size < old:
        raise UserError(f"growth: linear.density: {old} entries of {name} cannot shrink to {size}")
    held = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    held[support.flat().cpu()] = True
    free = held.logical_not().nonzero().flatten()
    drawn = free[draw_positions(size - old, free.numel(), seed, f"{name}.from_{old}")]
    wanted = held.clone()
    wanted[drawn] = True
    grown = TileSupport.from_flat(wanted.nonzero().flatten(), shape)
    grown_values = values.new_zeros(size)
    # Both are in tile order, so the old entries follow each other as before.
    grown_values[held[grown.flat()].to(values.device)] = values
    device = support.loc.device
    return TileSupport(grown.loc.to(device), grown.tile_ptr.to(device), shape), grown_values
