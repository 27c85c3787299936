"""The definition of group quantisation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.quant.format import TINY, Quantized, code_width
from kernels.rounding import random_bits, random_fractions


def quantize(W: Tensor, bits: int, group: int, key: int | None = None) -> Quantized:
    """W (rows, cols) in affine codes: see `kernels.quant.quantize`."""
    (rows, cols), levels = W.shape, 2**bits - 1
    q = Quantized.empty((rows, cols), bits, group, W.device)
    grouped = _in_groups(W.float(), group)  # padded with 0, which every range holds
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    span = high - low
    q.scales.copy_(torch.where(span.isfinite(), span.clamp(min=TINY) / levels, torch.nan))
    inverse = 1 / q.scales
    zeros = (-low * inverse + 0.5).clamp(0, levels).nan_to_num(0).floor()
    q.zeros.copy_(zeros)
    if key is None:
        carry = torch.tensor(0.5, device=W.device)  # round half up
    else:
        carry = _in_groups(random_fractions(random_bits(key, q.shape, W.device)), group)
    codes = (grouped * inverse[..., None] + (zeros[..., None] + carry)).clamp(0, levels).nan_to_num(0)
    q.codes.copy_(pack(codes.to(torch.uint8).flatten(1)[:, :cols], bits))
    return q


def dequantize(q: Quantized, dtype: torch.dtype) -> Tensor:
    """The matrix (rows, cols) of `q` in `dtype`, rounded to nearest even from fp32."""
    codes = _in_groups(unpack(q.codes, q.bits)[:, : q.shape[1]].float(), q.group)
    values = (codes - q.zeros[..., None].float()) * q.scales[..., None]
    return values.flatten(1)[:, : q.shape[1]].to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (rows, cols) in rows of bytes."""
    width = code_width(codes.shape[1], bits)
    codes = F.pad(codes, (0, width * 8 // bits - codes.shape[1]))
    if bits == 8:
        return codes
    even, odd = codes[:, ::2], codes[:, 1::2]
    return even | odd << 4


def unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 codes of rows of bytes, with those that fill a row."""
    return packed if bits == 8 else torch.stack([packed & 15, packed >> 4], -1).flatten(1)


def _in_groups(W: Tensor, group: int) -> Tensor:
    groups = -(-W.shape[1] // group)
    return F.pad(W, (0, groups * group - W.shape[1])).view(W.shape[0], groups, group)
