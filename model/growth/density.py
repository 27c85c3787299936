"""Growth of the density of an element-sparse matrix."""

import torch
from torch import Tensor

from kernels.support import TileSupport
from model.errors import UserError
from model.linear.support.element import draw_positions


def grow_density(support: TileSupport, values: Tensor, size: int, seed: int, name: str) -> tuple[TileSupport, Tensor]:
    """A support of `size` entries that holds the old one, and its values: the old ones, and 0 at new positions.

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
