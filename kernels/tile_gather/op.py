"""The gather as the layer calls it."""

import torch
from torch import Tensor

from kernels.backend import on_its_device, uses_triton
from kernels.checks import check_matrix
from kernels.support import TileSupport


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
        return dense.flatten().index_select(0, support.flat()).to(dtype)
    check_matrix("dense", dense, support.shape, [dense.dtype])
    from kernels.tile_gather.kernel import launch_tile_gather

    out = torch.empty(support.nnz, dtype=dtype, device=dense.device)
    launch_tile_gather(dense, support, out)
    return out
