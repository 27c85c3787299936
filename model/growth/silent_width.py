"""Growth in width by hidden units and heads that begin silent, the function unchanged: G_zero of arXiv 2405.15319.

What is new reads its input as a fresh model would, and the matrix behind it, down_proj or o_proj, has zeros for it. So
there may be any number of new ones, and none is like another; zeros receive gradient in the first step, what is before
them in the second. Channels of the residual stream cannot begin so: with D' of them, of which D are not zero, RMSNorm's
mean square is D / D' of the small model's, while the eps that it adds to it stays.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.support import TileSupport
from model.config import ModelConfig
from model.counts import in_block, projection_shapes
from model.growth.linears import LINEAR, State, grow_density
from model.growth.shapes import same_widths
from model.growth.tensors import LAYER, GrownTensor
from model.growth.width import in_tile_order
from model.linear import LINEARS, LinearConfig, build_linear
from model.linear.support.element import draw_positions


def add_width(
    tensors: Iterable[GrownTensor], small: ModelConfig, large: ModelConfig, linear: LinearConfig, seed: int
) -> Iterator[GrownTensor]:
    """Turn the state of a model with the units and heads of `small` into one with those of `large`, as many channels.

    As `copy_width`, but for what is new: it is drawn from (seed, name), or zero. The logits stay to rounding of sums.
    """
    if same_widths(small, large):
        yield from tensors
        return
    before, after, linear = projection_shapes(small), projection_shapes(large), in_block(large, linear)
    for name, group in groupby(tensors, key=lambda item: (match := LINEAR.match(item.name)) and match[1]):
        if name is None:
            yield from group
            continue
        items = {item.name.removeprefix(f"{name}."): item for item in group}
        match = LAYER.fullmatch(name)
        assert match
        state = {part: item.tensor for part, item in items.items()}
        shapes = before[match[2]], after[match[2]]
        for part, tensor in _added(state, *shapes, linear, large.init_std, seed, name).items():
            item = items[part]
            more = tensor.nbytes - item.tensor.nbytes
            random = part.startswith("support.") or tensor.count_nonzero() > item.tensor.count_nonzero()
            drawn = more if random else 0
            yield item._replace(tensor=tensor, drawn=drawn, zeroed=item.zeroed + more - drawn)
        del items, state, item, tensor


def _added(
    state: State,
    old: tuple[int, int],
    new: tuple[int, int],
    linear: LinearConfig,
    init_std: float,
    seed: int,
    name: str,
) -> State:
    """The state of the linear `name` of shape `old` (in, out) in the shape `new`, of which one side is as before."""
    rank = {"rank": len(state["A"]), "ranks": ()} if "A" in state else {}
    fresh = build_linear(linear.model_copy(update=rank), *new, name, init_std)
    fresh.reset_parameters(seed)
    drawn, grown = fresh.state_dict(), dict(state)
    for part in state.keys() & {"weight", "A"}:  # what reads further inputs is zero
        grown[part] = F.pad(state[part], (0, new[0] - old[0]))
    for part in state.keys() & {"weight", "B"}:  # further outputs are drawn
        grown[part] = torch.cat([grown[part], drawn[part][old[1] :].to(state[part].dtype)])
    if "values" in state:
        support = TileSupport(state["support.loc"], state["support.tile_ptr"], old[::-1])
        size = LINEARS[linear.name].count_entries(linear, *new)
        places = _new_places(old, new, size, support.nnz, seed, f"{name}.support.beside_{support.nnz}")
        values = drawn["values"][: len(places)].to(state["values"].dtype) * (new[0] == old[0])
        flat = support.flat().long()
        flat = torch.cat([flat // old[0] * new[0] + flat % old[0], places])
        support, values = in_tile_order(flat, torch.cat([state["values"], values]), new[::-1])
        # Where the shapes of a block share its density out, what was there may get more of it too.
        support, grown["values"] = grow_density(support, values, size, seed, f"{name}.support")
        grown["support.loc"], grown["support.tile_ptr"] = support.loc, support.tile_ptr
    return grown


def _new_places(old: tuple[int, int], new: tuple[int, int], size: int, held: int, seed: int, name: str) -> Tensor:
    """The flat positions of what `new` (in, out) has beyond `old`, where it is to have `size` and `held` are there."""
    further = new[0] - old[0]
    room = new[0] * new[1] - old[0] * old[1]
    count = max(0, min(size - held, math.ceil(size * room / (new[0] * new[1]))))
    drawn = draw_positions(count, room, seed, name).long()
    return drawn // further * new[0] + old[0] + drawn % further if further else drawn + old[1] * old[0]
