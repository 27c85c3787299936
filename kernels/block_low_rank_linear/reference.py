"""The definition of the block-sparse-plus-low-rank linear, through its dense matrix, differentiable by autograd."""

import torch
from torch import Tensor

from kernels.block_support import BlockSupport


def dense(values: Tensor, support: BlockSupport) -> Tensor:
    """S (out, in) of the blocks `values` (n_blocks, b, b) at `support`, zero elsewhere."""
    (n_rows, n_columns), b = support.grid, support.block
    index = support.index()
    blocks = torch.zeros(n_rows * n_columns, b, b, dtype=values.dtype, device=values.device)
    blocks = blocks.index_add(0, index.outputs * n_columns + index.inputs, values)
    return blocks.view(n_rows, n_columns, b, b).transpose(1, 2).reshape(support.shape)


def block_low_rank_linear(
    x: Tensor, A: Tensor, B: Tensor, values: Tensor, support: BlockSupport, scale: float
) -> Tensor:
    """y (..., out) = x W^T for x (..., in), with W = scale B A + S, computed in the dtype of x.

    A (rank, in), B (out, rank), values (n_blocks, b, b).
    """
    return x @ (scale * (B.to(x.dtype) @ A.to(x.dtype)) + dense(values.to(x.dtype), support)).t()
