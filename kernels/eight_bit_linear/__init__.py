"""The linear y = x W^T multiplied in eight bits, INT8 or FP8, forward and backward.

Why: a GeForce card multiplies INT8 at four times the rate of bf16, FP8 at twice, with sums in 32 bits; Hopper and
data-centre Blackwell both at twice. Two of a linear's three products bear it well:

    y  = x W^T    x quantised by token, W by output: both scales are constant along what is summed over
    dx = g W      what is summed over are W's rows, each with a scale of its own. They are folded into the columns of g,
                  and g is quantised by token after that: W's codes are those of the forward pass
    dW = g^T x    summed over tokens; in the precision of x, unless asked for otherwise

Every factor is quantised anew from what it is now (dynamic scaling): there is no history that a resume would have to
bring back, and a token with an outlier costs no other token its precision. The third product has no such shelter. Its
factors are quantised along the tokens, so that one large token coarsens its whole column, in a sum that an optimizer
adds up over thousands of steps, where rounding to nearest may err on the same side again and again. Hence stochastic
rounding there (int8), and hence the option is off by default. In models of some million parameters that caution shows
no use: to nearest, dW is nearer the exact one, in one micro-batch and in the sum of many (configs/LOG.md).

W = B A + S with a sparse S is in that danger in its forward pass, and there it is plain to see. S's few entries are
large and set the scale of their row; B A begins at zero, so at first nearly all of W lies within half a step of zero,
and to nearest that is zero: the low-rank part is learnt and not heard. Rounded stochastically (int8) it is right on
average. FP8 has steps in proportion to the number, and hears it.

What others do: torchao rounds W a second time for dx, along its columns. (So do we where W is stored in INT8 by groups,
whose scales cannot be folded.) Parameters stay what they are. Codes live from the forward to the backward pass, a byte
for each number of W: without recomputation, that is memory that plain products of a dense W do not take.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.code_product import LONGEST_SUM, product, product_across
from kernels.row_codes import Format, RowCodes, quantize_rows

__all__ = ["EightBit", "adjacent", "eight_bit_linear"]


@dataclass(frozen=True)
class EightBit:
    """How a linear multiplies in eight bits: T tokens, W (out, in)."""

    format: Format
    weight_gradient_too: bool = False
    """Whether dW is multiplied in eight bits too."""

    def codes(self, W: Tensor, small_beside_large: bool = False) -> RowCodes:
        """The factor that stands for W, by output; `small_beside_large` says that W has few large entries."""
        return quantize_rows(adjacent(W), self.format, stochastic=small_beside_large and self.format == "int8")

    def forward(self, x: Tensor, W: RowCodes) -> Tensor:
        """x W^T (T, out) of x (T, in)."""
        return product(quantize_rows(adjacent(x), self.format), W, x.dtype)

    def input_gradient(self, g: Tensor, W: RowCodes) -> Tensor:
        """g W (T, in) of g (T, out)."""
        return product_across(quantize_rows(adjacent(g), self.format, fold=W.scales), W, g.dtype)

    def weight_gradient(self, g: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """g^T x (out, in) in `dtype`, by default that of x, of g (T, out) and x (T, in)."""
        dtype = dtype or x.dtype
        if not self.weight_gradient_too:
            return (g.t() @ x).to(dtype)
        parts = range(0, len(x), LONGEST_SUM) if len(x) else ()
        sums = [self._weight_gradient(g[t : t + LONGEST_SUM], x[t : t + LONGEST_SUM], dtype) for t in parts]
        return sum(sums[1:], sums[0]) if sums else x.new_zeros(g.shape[1], x.shape[1], dtype=dtype)

    def _weight_gradient(self, g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        stochastic = self.format == "int8"
        left, right = (quantize_rows(factor.t().contiguous(), self.format, stochastic=stochastic) for factor in (g, x))
        return product(left, right, dtype)


def adjacent(matrix: Tensor) -> Tensor:
    """`matrix`, or a copy of it, with rows whose elements are adjacent in memory; an expanded gradient has none."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


def eight_bit_linear(x: Tensor, W: Tensor, how: EightBit) -> Tensor:
    """y (..., out) = x W^T in the dtype of x, of x (..., in) and W (out, in). Differentiable once.

    Keeps W's codes for the backward pass, a byte for each of its numbers, and x where W trains. A gradient has the
    dtype of its tensor.
    """
    return _Linear.apply(x, W, how)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, how: EightBit) -> Tensor:
        codes = how.codes(W)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, codes.codes, codes.scales)
        ctx.how, ctx.shape, ctx.dtype = how, x.shape, W.dtype
        return how.forward(x.reshape(-1, W.shape[1]), codes).view(*x.shape[:-1], W.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, codes, scales = ctx.saved_tensors
        W = RowCodes(codes, scales, ctx.shape[-1])
        need_x, need_W, _ = ctx.needs_input_grad
        g = grad_y.reshape(-1, W.shape[0])
        grad_x = ctx.how.input_gradient(g, W).view(ctx.shape) if need_x else None
        grad_W = ctx.how.weight_gradient(g, x.reshape(-1, W.cols)).to(ctx.dtype) if need_W else None
        return grad_x, grad_W, None
