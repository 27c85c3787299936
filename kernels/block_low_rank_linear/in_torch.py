"""Products with the blocks in plain PyTorch: gathered inputs, one batched matmul."""

import torch
from torch import Tensor

from kernels.block_support import BlockSupport


def combine(
    x: Tensor, z: Tensor, factor: Tensor, values: Tensor, support: BlockSupport, scale: float, transposed: bool
) -> Tensor:
    """scale z factor^T + x S^T, S for S^T when `transposed`."""
    b = support.block
    blocks, inputs = support.padded(transposed)
    if transposed:
        stacked = torch.cat([values, values.new_zeros(1, b, b)])[blocks]
    else:
        stacked = values.transpose(1, 2).unflatten(0, blocks.shape)
    product = torch.bmm(_gather(x, inputs, b), stacked.flatten(1, 2))  # [output blocks, N, b]
    # This order is the quick one on a CPU: there, adding to the strided view of a bf16 y takes longer than the matmuls.
    return product.transpose(0, 1).reshape(len(x), len(factor)).addmm_(z, factor.t(), alpha=scale)


def gradient(g: Tensor, x: Tensor, support: BlockSupport) -> Tensor:
    """The blocks (n_blocks, b, b) of g^T x at the support."""
    (n_rows, _), b = support.grid, support.block
    outs = g.view(len(g), n_rows, b).permute(1, 2, 0)
    product = torch.bmm(outs, _gather(x, support.columns, b))  # [block-rows, b, k b]
    return product.view(n_rows, b, support.k, b).transpose(1, 2).reshape(-1, b, b)


def _gather(x: Tensor, blocks: Tensor, b: int) -> Tensor:
    """The columns of x (N, in) that each row of `blocks` (rows, count) names, as (rows, N, count b)."""
    gathered = x.view(len(x), x.shape[1] // b, b).index_select(1, blocks.flatten())
    return gathered.view(len(x), len(blocks), blocks.shape[1] * b).transpose(0, 1)
