"""The linear y = x W^T multiplied in eight bits, INT8 or FP8, forward and backward.

Why: a GeForce card multiplies INT8 at four times the rate of bf16 with fp32 sums, FP8 at two to four times; Hopper and
data-centre Blackwell both at twice. Two of a linear's three products lose nothing that counts by it:

    y  = x W^T    x quantised by token, W by output: both scales are constant along what is summed over
    dx = g W      what is summed over are W's rows, each with a scale of its own. They are folded into the columns of g,
                  and g is quantised by token after that: W's codes are those of the forward pass
    dW = g^T x    summed over tokens; in the precision of x, unless asked for otherwise

Every factor is quantised anew from what it is now (dynamic scaling): there is no history that a resume would have to
bring back, and a token with an outlier costs no other token its precision. The third product is the delicate one. Its
factors are quantised along the tokens, so that one large token coarsens its whole column, in a sum that an optimizer
adds up over thousands of steps: rounding to nearest is wrong on the same side again and again. Hence stochastic
rounding there (int8), and hence the option is off by default.

A W = B A + S with a sparse S has the same trouble in its forward pass. S's few entries are large and set the scale of
their row; B A begins at zero, so for the first hundred steps nearly all of W lies within half a step of zero, and to
nearest that is zero: the low-rank part is learnt and not heard. Rounded stochastically (int8) it is right on average.
FP8 has steps in proportion to the number, and no such trouble.

What others do: torchao rounds W a second time for dx, along its columns. Parameters stay what they are: in eight bits
are factors, for the length of a product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.code_product import product, product_across
from kernels.row_codes import Format, RowCodes, quantize_rows

__all__ = ["EightBit", "eight_bit_linear"]


@dataclass(frozen=True)
class EightBit:
    """How a linear multiplies in eight bits: T tokens, W (out, in)."""

    format: Format
    weight_gradient_too: bool = False
    """Whether dW is multiplied in eight bits too."""

    def codes(self, W: Tensor, sparse: bool = False) -> RowCodes:
        """The factor that stands for W, by output; `sparse` says that W is a small matrix and few large entries."""
        return quantize_rows(W, self.format, stochastic=sparse and self.format == "int8")

    def forward(self, x: Tensor, W: RowCodes) -> Tensor:
        """x W^T (T, out) of x (T, in)."""
        return product(quantize_rows(x, self.format), W, x.dtype)

    def input_gradient(self, g: Tensor, W: RowCodes) -> Tensor:
        """g W (T, in) of g (T, out)."""
        return product_across(quantize_rows(g, self.format, fold=W.scales), W, g.dtype)

    def weight_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """g^T x (out, in) of g (T, out) and x (T, in)."""
        if not self.weight_gradient_too:
            return g.t() @ x
        stochastic = self.format == "int8"
        left, right = (quantize_rows(factor.t().contiguous(), self.format, stochastic=stochastic) for factor in (g, x))
        return product(left, right, x.dtype)


def eight_bit_linear(x: Tensor, W: Tensor, how: EightBit) -> Tensor:
    """y (..., out) = x W^T in the dtype of x, of x (..., in) and W (out, in). Differentiable once.

    Keeps W's codes for the backward pass, not W. A gradient has the dtype of its tensor.
    """
    return _Linear.apply(x, W, how)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, how: EightBit) -> Tensor:
        codes = how.codes(W)
        ctx.save_for_backward(x, codes.codes, codes.scales)
        ctx.how, ctx.dtype = how, W.dtype
        return how.forward(x.reshape(-1, W.shape[1]), codes).view(*x.shape[:-1], W.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, codes, scales = ctx.saved_tensors
        W = RowCodes(codes, scales, x.shape[-1])
        need_x, need_W, _ = ctx.needs_input_grad
        g = grad_y.reshape(-1, W.shape[0])
        grad_x = ctx.how.input_gradient(g, W).view_as(x) if need_x else None
        grad_W = ctx.how.weight_gradient(g, x.reshape(-1, W.cols)).to(ctx.dtype) if need_W else None
        return grad_x, grad_W, None
