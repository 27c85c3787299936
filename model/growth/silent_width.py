"""Growth in width by hidden units and heads that begin silent, the function unchanged: G_zero of arXiv 2405.15319.

What is new reads its input as a fresh model would, and the matrix behind it, down_proj or o_proj, has zeros for it. So
there may be any number of new ones, and none is like another; zeros receive gradient in the first step, what is before
them in the second. Channels of the residual stream cannot begin so: with D' of them, of which D are not zero, RMSNorm's
mean square is D / D' of the small model's, while the eps that it adds to it stays.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.support import TileSupport
from model.config import ModelConfig
from model.counts import projection_shapes
from model.growth.linears import LINEAR, State
from model.growth.shapes import same_widths
from model.growth.tensors import LAYER, GrownTensor
from model.growth.width import in_tile_order
from model.linear import LinearConfig, build_linear
from model.linear.support import SUPPORTS
from model.linear.support.element import draw_positions
from model.seeding import fill_uniform


def add_width(
    tensors: Iterable[GrownTensor], small: ModelConfig, large: ModelConfig, linear: LinearConfig, seed: int
) -> Iterator[GrownTensor]:
    """Turn the state of a model with the units and heads of `small` into one with those of `large`, as many channels.

    As `copy_width`, but for what is new: it is drawn from (seed, name), or zero. The logits stay to rounding of sums.
    """
    if same_widths(small, large):
        yield from tensors
        return
    shapes = projection_shapes(large)
    for name, group in groupby(tensors, key=lambda item: (match := LINEAR.match(item.name)) and match[1]):
        if name is None:
            yield from group
            continue
        items = {item.name.removeprefix(f"{name}."): item for item in group}
        match = LAYER.fullmatch(name)
        assert match
        state = {part: item.tensor for part, item in items.items()}
        for part, tensor in _added(state, shapes[match[2]], linear, large.init_std, seed, name).items():
            before = items[part]
            more = tensor.nbytes - before.tensor.nbytes
            random = part.startswith("support.") or tensor.count_nonzero() > before.tensor.count_nonzero()
            drawn = more if random else 0
            yield before._replace(tensor=tensor, drawn=drawn, zeroed=before.zeroed + more - drawn)
        del items, state, before, tensor


def _added(state: State, shape: tuple[int, int], linear: LinearConfig, init_std: float, seed: int, name: str) -> State:
    """The state of the linear `name` in `shape` (in, out), of which one side is as before."""
    n_in, n_out = shape
    rank = {"rank": len(state["A"]), "ranks": ()} if "A" in state else {}
    fresh = build_linear(linear.model_copy(update=rank), n_in, n_out, name, init_std)
    fresh.reset_parameters(seed)
    grown = dict(state)
    for part in state.keys() & {"weight", "A"}:  # what reads further inputs is zero
        grown[part] = F.pad(state[part], (0, n_in - state[part].shape[1]))
    for part in state.keys() & {"weight", "B"}:  # further outputs are drawn
        drawn = fresh.get_parameter(part).detach()[len(state[part]) :]
        grown[part] = torch.cat([grown[part], drawn.to(state[part].dtype)])
    if "values" in state:
        old_shape = len(state["B"]), state["A"].shape[1]
        support = TileSupport(state["support.loc"], state["support.tile_ptr"], old_shape)
        size = SUPPORTS[linear.support].count(linear.density, n_in, n_out)
        support, grown["values"] = _add_entries(support, state["values"], (n_out, n_in), size, seed, name)
        grown["support.loc"], grown["support.tile_ptr"] = support.loc, support.tile_ptr
    return grown


def _add_entries(
    support: TileSupport, values: Tensor, shape: tuple[int, int], size: int, seed: int, name: str
) -> tuple[TileSupport, Tensor]:
    """The entries in their places in `shape`, and new ones up to `size` in what is new of it, as the part of it is."""
    (n_out, n_in), (old_out, old_in), flat = shape, support.shape, support.flat().long()
    further, more = n_in - old_in, size - len(flat)
    room = (n_out - old_out) * n_in or n_out * further
    drawn = draw_positions(min(more, room), room, seed, f"{name}.support.beside_{len(flat)}").long()
    new = values.new_zeros(len(drawn))
    if further:
        drawn = drawn // further * n_in + old_in + drawn % further
    else:
        drawn += old_out * n_in
        fill_uniform(new, n_in**-0.5, seed, f"{name}.values.beside_{len(flat)}")
    places = torch.cat([flat // old_in * n_in + flat % old_in, drawn])
    return in_tile_order(places, torch.cat([values, new]), shape)
