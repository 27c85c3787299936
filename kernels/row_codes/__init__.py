"""Row-wise quantisation to 8 bits, INT8 or FP8: the factors of eight-bit products."""

import torch
from torch import Tensor

from kernels.arguments import check_matrix
from kernels.backend import on_its_device, uses_triton
from kernels.row_codes import in_torch, reference
from kernels.row_codes.format import Format, RowCodes

__all__ = ["Format", "RowCodes", "quantize_rows", "transposed"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@on_its_device
def quantize_rows(x: Tensor, format: Format, fold: Tensor | None = None, stochastic: bool = False) -> RowCodes:
    """Quantise x (rows, cols), its columns times `fold` (cols,) fp32 when given: x fold = codes * scales[:, None].

    The largest number of a row becomes 127 (int8) or 448 (fp8, e4m3); all is computed in fp32 and rounded to nearest
    even, so no int8 element moves by more than half a scale, and no normal fp8 one by more than a sixteenth of itself.
    `stochastic`, for int8: each element rounds up with the probability that makes it right on average, to 2^-16; by
    `kernels.rounding.random_bits` of its position and its row's scale, so that equal matrices round alike on every
    device.

    A row that holds NaN or infinity, or overflows fp32, gets the scale NaN and the codes 0: its products are NaN, those
    of other rows unharmed. (Casts would hide an overflow: to e4m3 they saturate.) ValueError when x is no matrix of
    fp32, bf16 or fp16 with contiguous rows, `fold` does not fit, or for fp8 with `stochastic`.
    """
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be a matrix with columns")
    check_matrix("x", x, x.shape, FLOATS)
    if fold is not None and (fold.shape != x.shape[1:] or fold.dtype != torch.float32):
        raise ValueError(f"fold is {fold.dtype} of {tuple(fold.shape)}; it must be fp32 of {tuple(x.shape[1:])}")
    if stochastic and format != "int8":
        raise ValueError("stochastic rounding is for int8; fp8 rounds to nearest")
    if not uses_triton(x):
        return in_torch.quantize_rows(x, format, fold, stochastic)
    q = RowCodes.empty((x.shape[0], x.shape[1]), format, x.device)
    if x.shape[0]:
        from kernels.row_codes.in_triton import launch_quantize_rows

        launch_quantize_rows(x, fold if fold is None else fold.contiguous(), q, stochastic)
    return q


@on_its_device
def transposed(q: RowCodes) -> RowCodes:
    """Return the codes of q's matrix transposed (cols, rows), without scales: q's are those of its columns."""
    q.check("q")
    if not uses_triton(q.codes):
        return reference.transposed(q)
    out = RowCodes(RowCodes.empty((q.cols, q.shape[0]), q.format, q.codes.device).codes, None, q.shape[0])
    if q.shape[0]:
        from kernels.row_codes.in_triton import launch_transpose

        launch_transpose(q, out)
    return out
