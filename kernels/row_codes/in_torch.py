"""Row-wise quantisation in plain PyTorch, in as few passes over memory as there are."""

import torch
from torch import Tensor

from kernels.quant.format import TINY
from kernels.row_codes.format import LARGEST, Format, RowCodes
from kernels.row_codes.reference import pad, to_codes


def quantize_rows(x: Tensor, format: Format, fold: Tensor | None, stochastic: bool) -> RowCodes:
    """The definition's codes and scales, bit for bit."""
    x = x if fold is None else x * fold
    largest = x.abs().amax(1).float()  # NaN where a row has one; aminmax takes a CPU seven times as long
    span = largest.clamp(min=TINY)
    top = torch.full_like(span, LARGEST[format])  # of a number, a quotient would be rounded twice
    inverse, scales = top / span, span / top
    finite = largest.isfinite()
    if not finite.all():
        scales.masked_fill_(~finite, torch.nan)
        inverse.masked_fill_(~finite, 0)
        x = x.masked_fill(~finite[:, None], 0)
    return RowCodes(pad(to_codes(x * inverse[:, None], format, scales if stochastic else None)), scales, x.shape[1])
