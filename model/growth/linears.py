"""Growth of rank and density of a model's linears, its map unchanged."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from torch import Tensor

from kernels.support import TileSupport
from model.errors import UserError
from model.growth.density import grow_density
from model.growth.rank import grow_rank
from model.growth.tensors import GrownTensor
from model.linear import LinearConfig
from model.linear.low_rank import require_rank_fits
from model.linear.support import SUPPORTS

LINEAR = re.compile(r"(layers\.\d+\.(?:attention|feed_forward)\.\w+_proj)\.")

State = dict[str, Tensor]


def grow_linears(
    tensors: Iterable[GrownTensor], old: LinearConfig, new: LinearConfig, seed: int
) -> Iterator[GrownTensor]:
    """The state of a model with linears `old` as that of one with `new`, the function unchanged.

    `tensors` as `grow_tensors` gives them: those of one linear follow each other. One linear is in memory at a time.
    UserError where the change is no growth.
    """
    require_linears_growable(old, new)
    for name, group in groupby(tensors, key=lambda item: _linear_of(item.name)):
        if name is None or old == new:
            yield from group
            continue
        items = {item.name.removeprefix(f"{name}."): item for item in group}
        state = {part: item.tensor for part, item in items.items()}
        for part, tensor in grow_linear(state, old, new, seed, name).items():
            more = tensor.nbytes - state[part].nbytes
            # New rows of A and new positions are drawn; new columns of B and new values are zero.
            drawn = part == "A" or part.startswith("support.")
            before = items[part]
            yield before._replace(
                tensor=tensor,
                zeroed=before.zeroed + (0 if drawn else more),
                drawn=before.drawn + (more if drawn else 0),
            )
        del items, state, before, tensor


def require_linears_growable(old: LinearConfig, new: LinearConfig) -> None:
    """UserError unless linears `old` can become `new` by more rank, more density or another alpha."""
    if old.name != new.name:
        raise UserError(f"growth: linear.name {old.name!r} cannot become {new.name!r}; keep it")
    if old.name != "sparse_low_rank":
        return
    if old.support != new.support:
        raise UserError(f"growth: linear.support {old.support!r} cannot become {new.support!r}; keep it")
    if old.support != "element" and old.density != new.density:
        raise UserError(f"growth: linear.density cannot grow with linear.support {old.support!r}; keep {old.density}")


def grow_linear(state: State, old: LinearConfig, new: LinearConfig, seed: int, name: str) -> State:
    """The state of one linear, `name` its full name; what is drawn comes from (seed, name)."""
    if old == new or "A" not in state:
        return state
    A, B = state["A"], state["B"]
    n_in, n_out = A.shape[1], B.shape[0]
    require_rank_fits(new.rank, n_in, n_out, name)
    ratio = (old.alpha * new.rank) / (old.rank * new.alpha)
    grown = dict(state)
    grown["A"], grown["B"] = grow_rank(A, B, new.rank, ratio, seed, name)
    if "values" in state and old.density != new.density:
        support = TileSupport(state["support.loc"], state["support.tile_ptr"], (n_out, n_in))
        size = SUPPORTS[new.support].count(new.density, n_in, n_out)
        support, grown["values"] = grow_density(support, state["values"], size, seed, f"{name}.support")
        grown["support.loc"], grown["support.tile_ptr"] = support.loc, support.tile_ptr
    return grown


def _linear_of(name: str) -> str | None:
    match = LINEAR.match(name)
    return match[1] if match else None
