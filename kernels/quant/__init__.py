"""Group quantisation along the rows of a matrix to 8 or 4 bits, as Q-GaLore's weights and projectors need it."""

import torch
from torch import Tensor

from kernels.arguments import check_matrix
from kernels.backend import on_its_device, uses_triton
from kernels.quant import reference
from kernels.quant.format import Quantized
from kernels.rounding import check_key

__all__ = ["Quantized", "dequantize", "quantize"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@on_its_device
def quantize(W: Tensor, bits: int, group: int = 256, key: int | None = None) -> Quantized:
    """W (rows, cols) in affine codes of `bits` 8 or 4, by groups of 64, 128 or 256 elements of a row.

    code = round(w / scale) + zero within [0, 2^bits - 1], scale = (max - min) / (2^bits - 1), zero = round(-min /
    scale), of the group's range widened to hold 0: 0 is exact, a group of one sign is not clipped, and no element
    moves by more than half a step. (Q-GaLore, arXiv 2407.08296, section 3.2, does not widen it.)

    Rounds halves up; with a 32-bit `key` stochastically, after `kernels.rounding.random_bits` of the flat position: up
    with the probability that makes it right on average, to 2^-16 of a step, except where zero's own rounding leaves
    less than a step at the ends of the range. Values on the grid stay where they are.

    A group that holds NaN or infinity, or whose range overflows fp32, gets the scale NaN and dequantises to NaN; the
    other groups are unharmed. ValueError for other bits, groups or keys, or a W that is not a matrix of fp32, bf16 or
    fp16 with contiguous rows.
    """
    check_key(key)
    if W.ndim != 2:
        raise ValueError(f"W has shape {tuple(W.shape)}; it must be a matrix")
    check_matrix("W", W, W.shape, DTYPES)
    rows, cols = W.shape
    if not uses_triton(W):
        return reference.quantize(W, bits, group, key)
    q = Quantized.empty((rows, cols), bits, group, W.device)
    if W.numel():
        from kernels.quant.in_triton import launch_quantize

        launch_quantize(W, q, key)
    return q


@on_its_device
def dequantize(q: Quantized, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The matrix (rows, cols) of `q` in `dtype`, rounded once from fp32; written to `out` when given.

    ValueError when `out` has another shape or dtype, or rows that are not contiguous.
    """
    q.check("q", q.shape)
    W = torch.empty(q.shape, dtype=dtype, device=q.device) if out is None else out
    check_matrix("out", W, q.shape, [dtype])
    if not uses_triton(q.codes):
        return W.copy_(reference.dequantize(q, dtype))
    if W.numel():
        from kernels.quant.in_triton import launch_dequantize

        launch_dequantize(q, W)
    return W
