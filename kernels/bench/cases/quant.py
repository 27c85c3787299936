"""Group quantisation of a weight and back, against the passes of the released Q-GaLore code (arXiv 2407.08296)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from kernels.bench.case import Case
from kernels.bench.inputs import Inputs, projections
from kernels.quant import dequantize, quantize

RELEASED = "passes of the released code"


def published_quantize(W: Tensor, stochastic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of groups of 256 consecutive elements, one dense pass after another."""
    w = W.reshape(-1, 256)
    high, low = w.amax(1, keepdim=True), w.amin(1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / 255
    zeros = (-torch.round(low / scales)).clamp_(0, 255)
    codes = w / scales
    if stochastic:
        down = codes.floor()
        codes = torch.where(torch.rand_like(codes) < codes - down, down + 1, down)
    else:
        codes = codes.round_()
    return codes.add_(zeros).clamp_(0, 255).to(torch.uint8), scales, zeros


def published_dequantize(codes: Tensor, scales: Tensor, zeros: Tensor, shape: torch.Size) -> Tensor:
    return ((codes.to(scales.dtype) - zeros) * scales).reshape(shape)


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape in projections(device):
        if shape.n_in % 256:
            continue  # the released code cannot divide it into groups
        W = inputs.normal(shape.n_out, shape.n_in)
        q, out = quantize(W, 8), torch.empty_like(W)
        size, moved = f"{shape.n_out}x{shape.n_in}, 8 bits", W.nbytes + q.nbytes
        for name, key in (("quantize", None), ("quantize stochastically", 1)):
            peers = {RELEASED: partial(published_quantize, W, key is not None)}
            yield Case(name, size, dtype, partial(quantize, W, 8, key=key), peers, moved)
        peer = partial(published_dequantize, *published_quantize(W, False), W.shape)
        yield Case("dequantize", size, dtype, partial(dequantize, q, dtype, out=out), {RELEASED: peer}, moved)
