"""The definition of row-wise quantisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant.format import TINY
from kernels.rounding import random_bits, random_fractions
from kernels.row_codes.format import DTYPES, LARGEST, Format, RowCodes, code_width


def quantize_rows(x: Tensor, format: Format, fold: Tensor | None = None, stochastic: bool = False) -> RowCodes:
    """x (rows, cols), its columns times `fold`, in codes: see `kernels.row_codes.quantize_rows`."""
    wide = x.float() if fold is None else x.float() * fold
    largest = wide.abs().amax(1)  # NaN where a row has one
    finite, span = largest.isfinite(), largest.clamp(min=TINY)
    top = torch.full_like(span, LARGEST[format])  # of a number, a quotient would be rounded twice
    scales, inverse = torch.where(finite, span / top, torch.nan), torch.where(finite, top / span, 0)
    scaled = torch.where(finite[:, None], wide * inverse[:, None], 0)
    return RowCodes(pad(to_codes(scaled, format, scales if stochastic else None)), scales, x.shape[1])


def to_codes(scaled: Tensor, format: Format, scales: Tensor | None) -> Tensor:
    """fp32 `scaled` (rows, cols) as codes: to nearest even, or stochastically by the bits of `scales` (rows,).

    Overwrites `scaled`.
    """
    if scales is not None:
        bits = random_bits(scales.view(torch.int32)[:, None], (scaled.shape[0], scaled.shape[1]), scaled.device)
        scaled.add_(random_fractions(bits)).floor_()
    elif format == "int8":
        scaled.round_()
    return scaled.clamp_(-LARGEST[format], LARGEST[format]).to(DTYPES[format])


def pad(codes: Tensor) -> Tensor:
    """Codes (rows, cols) in rows of bytes that begin where they should."""
    filled = F.pad(codes.view(torch.uint8), (0, code_width(codes.shape[1]) - codes.shape[1]))
    return filled.contiguous().view(codes.dtype)


def transposed(q: RowCodes) -> RowCodes:
    """The codes of W^T (cols, rows), without scales: they are those of its columns."""
    return RowCodes(pad(q.codes[:, : q.cols].t().contiguous()), None, q.shape[0])


def decoded(q: RowCodes) -> Tensor:
    """The matrix (rows, cols), fp32."""
    values = q.codes[:, : q.cols].float()
    return values if q.scales is None else values * q.scales[:, None]
