"""Decompression, W = scale B A + S from its parts (arXiv 2406.02214, section 3), and the gather that goes back.

The gather gives the gradient of the sparse values: the entries of the dense gradient at the support.
"""

import torch
from torch import Tensor

from kernels.arguments import check_matrix
from kernels.backend import on_its_device, uses_triton
from kernels.decompress import in_torch
from kernels.support import TileSupport, padded_width


@on_its_device
def decompress(
    A: Tensor, B: Tensor, values: Tensor, support: TileSupport, scale: float, *, fused: bool = False
) -> Tensor:
    """W (out, in) = scale B A + S, S holding `values` (nnz,) at `support`.

    A (rank, in), B (out, rank) and values in one dtype; rank 0 leaves S alone. `fused`, where Triton runs: one kernel
    that writes W once; else a matmul by the vendor's library and a kernel that adds S. Not differentiable. ValueError
    when the dtypes differ, or the shapes do not fit the support.
    """
    support.check_factors(A, B, values)
    if not A.dtype == B.dtype == values.dtype:
        raise ValueError(f"A, B and values must have one dtype, not {A.dtype}, {B.dtype} and {values.dtype}")
    W = empty_weight(support.shape, B)
    if not uses_triton(B):
        in_torch.decompress(A, B, values, support, scale, W)
        return W
    from kernels.decompress.in_triton import launch_decompress, launch_scatter

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


@on_its_device
def tile_gather(dense: Tensor, support: TileSupport, dtype: torch.dtype | None = None) -> Tensor:
    """The entries (nnz,) of `dense` (out, in) at `support`, in tile order, as `dtype` (default: that of dense).

    ValueError when `dense` has another shape than the support's matrix or, where Triton runs, rows that are not
    contiguous or so far apart that they span 2^31 elements.
    """
    if tuple(dense.shape) != support.shape:
        raise ValueError(f"dense has shape {tuple(dense.shape)}; the support's matrix is {support.shape}")
    dtype = dtype or dense.dtype
    if not uses_triton(dense):
        return in_torch.tile_gather(dense, support).to(dtype)
    check_matrix("dense", dense, support.shape, [dense.dtype])
    from kernels.decompress.in_triton import launch_tile_gather

    out = torch.empty(support.nnz, dtype=dtype, device=dense.device)
    launch_tile_gather(dense, support, out)
    return out
