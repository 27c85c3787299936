"""Decompression as the layer calls it."""

import torch
from torch import Tensor

from kernels.backend import on_its_device, uses_triton
from kernels.support import TileSupport, padded_width


@on_its_device
def decompress(
    A: Tensor, B: Tensor, values: Tensor, support: TileSupport, scale: float, *, fused: bool = False
) -> Tensor:
    """W (out, in) = scale B A + S, S holding `values` (nnz,) at `support`.

    A (rank, in), B (out, rank) and values in one dtype. `fused`, where Triton runs: one kernel that writes W once;
    else a matmul by the vendor's library and a kernel that adds S. Not differentiable. ValueError when the dtypes
    differ, or the shapes do not fit the support.
    """
    support.check_factors(A, B, values)
    if not A.dtype == B.dtype == values.dtype:
        raise ValueError(f"A, B and values must have one dtype, not {A.dtype}, {B.dtype} and {values.dtype}")
    W = empty_weight(support.shape, B)
    if not uses_triton(B):
        W.addmm_(B, A, beta=0, alpha=scale)  # beta 0 ignores what is in W's memory, NaN included
        W.view(-1).index_add_(0, support.flat(), values)
        return W
    from kernels.decompress.kernel import launch_decompress, launch_scatter

    if fused:
        launch_decompress(A.contiguous(), B.contiguous(), values, support, scale, W)
    else:
        W.addmm_(B, A, beta=0, alpha=scale)
        launch_scatter(W, values, support)
    return W


def empty_weight(shape: tuple[int, int], like: Tensor) -> Tensor:
    """An uninitialised matrix; where Triton runs, its rows are padded."""
    width = padded_width(shape[1]) if uses_triton(like) else shape[1]
    return torch.empty(shape[0], width, dtype=like.dtype, device=like.device)[:, : shape[1]]
