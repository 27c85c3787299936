"""The path through the dense W, which exists only while a matmul reads it, unless the choice keeps it.

Autograd through the definition would keep W of every layer from the forward to the backward pass, the memory of the
dense model. Here W is rebuilt in the backward pass, as in the paper (arXiv 2406.02214, equation 3). With N tokens the
cost is 6 N out in + 8 out in rank FLOPs, forward and backward; at most one dense matrix of the layer is alive: W, and
in the same memory its gradient.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.decompress import decompress, empty_weight, tile_gather
from kernels.eight_bit_linear import EightBit
from kernels.products import scaled_mm
from kernels.row_codes import RowCodes
from kernels.sparse_low_rank_linear.choice import Choice, StepCache
from kernels.support import TileSupport


class DensePath(torch.autograd.Function):
    """y (..., out) of x (..., in), A, B, values, support, scale, choice, cache and how to multiply in eight bits.

    Where that is given, W's codes are what is multiplied with, and what is kept.
    """

    @staticmethod
    def forward(ctx, x, A, B, values, support, scale, choice, cache, eight_bit):
        ctx.support, ctx.scale, ctx.choice, ctx.cache, ctx.eight_bit = support, scale, choice, cache, eight_bit
        weight = _weight(x.dtype, A, B, values, support, scale, choice, cache, eight_bit)
        # The parameters themselves are saved, not casts of them: they are alive anyway, a cast would be a copy.
        ctx.save_for_backward(x, A, B, values, *(_parts(weight) if choice.keep == "layer" else (None, None)))
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        y = flat @ weight.t() if isinstance(weight, Tensor) else eight_bit.forward(flat, weight)
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, A, B, values, *parts = ctx.saved_tensors
        support, scale, choice, cache, eight_bit = ctx.support, ctx.scale, ctx.choice, ctx.cache, ctx.eight_bit
        need_x, need_A, need_B, need_values, *_ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_values = None
        g = grad_y.reshape(-1, B.shape[0])  # [N, O]
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        scratch = None
        if need_x:
            weight = _of_parts(parts, A.shape[1])
            if weight is None:
                weight = _weight(x.dtype, A, B, values, support, scale, choice, cache, eight_bit)
                scratch = weight if choice.keep == "none" and isinstance(weight, Tensor) else None
            grad_x = g @ weight if isinstance(weight, Tensor) else eight_bit.input_gradient(g, weight)
            grad_x = grad_x.view_as(x)
        weight = parts = None
        if need_A or need_B or need_values:
            dense = _dense_grad(g, flat, choice, cache, scratch, eight_bit)  # [O, I], or None while it is being summed
            if dense is not None:
                narrow = dense.to(x.dtype)
                grad_A = scaled_mm(B.to(x.dtype).t(), narrow, scale).to(A.dtype) if need_A else None
                grad_B = scaled_mm(narrow, A.to(x.dtype).t(), scale).to(B.dtype) if need_B else None
                grad_values = tile_gather(dense, support, values.dtype) if need_values else None
        return grad_x, grad_A, grad_B, grad_values, None, None, None, None, None


def _weight(
    dtype: torch.dtype,
    A: Tensor,
    B: Tensor,
    values: Tensor,
    support: TileSupport,
    scale: float,
    choice: Choice,
    cache: StepCache | None,
    eight_bit: EightBit | None,
) -> Tensor | RowCodes:
    """W (out, in) or its codes, from the cache where they are kept over a step."""
    form = (dtype, eight_bit)
    kept = cache.weight((A, B, values), form) if cache is not None and choice.keep == "step" else None
    if kept is not None:
        return kept
    weight: Tensor | RowCodes
    weight = decompress(A.to(dtype), B.to(dtype), values.to(dtype), support, scale, fused=choice.fused)
    if eight_bit is not None:
        weight = eight_bit.codes(weight, small_beside_large=A.shape[0] > 0 and support.nnz > 0)
    if cache is not None and choice.keep == "step":
        cache.keep(weight, (A, B, values), form)
    return weight


def _parts(weight: Tensor | RowCodes) -> tuple[Tensor, Tensor | None]:
    """The tensors of what is multiplied with: W, or its codes and scales."""
    return (weight, None) if isinstance(weight, Tensor) else (weight.codes, weight.scales)


def _of_parts(parts: list[Tensor | None], n_in: int) -> Tensor | RowCodes | None:
    """What `_parts` took apart."""
    weight, scales = parts
    return weight if weight is None or scales is None else RowCodes(weight, scales, n_in)


def _dense_grad(
    g: Tensor, x: Tensor, choice: Choice, cache: StepCache | None, scratch: Tensor | None, eight_bit: EightBit | None
) -> Tensor | None:
    """g^T x (out, in), in the memory of `scratch` when given; None until the step's last micro-step when summed."""
    codes = eight_bit if eight_bit is not None and eight_bit.weight_gradient_too else None
    if cache is None or not choice.accumulate:
        if codes is not None:
            return codes.weight_gradient(g, x)
        return torch.mm(g.t(), x, out=empty_weight((g.shape[1], x.shape[1]), x) if scratch is None else scratch)
    total = cache.dense_grad
    if total is None:
        if cache.last_micro_step:  # the only one
            return torch.mm(g.t(), x) if codes is None else codes.weight_gradient(g, x)
        wide = torch.promote_types(x.dtype, torch.float32)
        total = torch.zeros(g.shape[1], x.shape[1], dtype=wide, device=x.device)
    if codes is not None:
        total += codes.weight_gradient(g, x, total.dtype)
    elif total.dtype == x.dtype:
        total.addmm_(g.t(), x)
    elif x.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, g.t(), x, total.dtype, out=total)
    else:
        total += g.t() @ x
    cache.dense_grad = None if cache.last_micro_step else total
    return total if cache.last_micro_step else None
