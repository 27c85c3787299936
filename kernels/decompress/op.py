"""Decompression as the layer calls it."""

import torch
from torch import Tensor

from kernels.backend import uses_triton
from kernels.support import TileSupport

FUSED_BELOW_RANK = 256
"""Below this rank the product is bound by writing W, so one kernel that writes it once wins over cuBLAS + scatter."""


def decompress(
    A: Tensor, B: Tensor, values: Tensor, support: TileSupport, scale: float, out: Tensor | None = None
) -> Tensor:
    """W (out, in) = scale B A + S, S holding `values` (nnz,) at `support`; written to `out` when given.

    A (rank, in), B (out, rank) and values in one dtype. Not differentiable: the layer's backward pass is written out.
    """
    W = torch.empty(support.shape, dtype=B.dtype, device=B.device) if out is None else out
    if not uses_triton(B):
        W.addmm_(B, A, beta=0, alpha=scale)  # beta 0 ignores what is in W's memory, NaN included
        W.view(-1).index_add_(0, support.flat(), values)
        return W
    from kernels.decompress.kernel import launch_decompress, launch_scatter

    if B.shape[1] < FUSED_BELOW_RANK:
        launch_decompress(A, B, values, support, scale, W)
    else:
        W.addmm_(B, A, beta=0, alpha=scale)
        launch_scatter(W, values, support)
    return W
