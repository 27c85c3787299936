"""What a GPU does in one operation where tensors without data have no such path.

Outputs, what is saved for the backward pass, and workspace are allocated as CUDA's operations do; nothing is computed.
Not counted: workspace of cuBLAS and cuSOLVER, and what the allocator leaves unused.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import triton.runtime.jit
from torch import Tensor
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def launches_left_out() -> Iterator[None]:
    """Inside, this thread's launches of Triton kernels do nothing: there is no data to run on. Other threads launch."""
    kernel, mine = triton.runtime.jit.JITFunction, threading.get_ident()
    launch = kernel.run

    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        return None if threading.get_ident() == mine else launch(self, *arguments, **options)

    kernel.run = run
    try:
        yield
    finally:
        kernel.run = launch


def rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    return _FusedRMSNorm.apply(x, weight)


class _FusedRMSNorm(torch.autograd.Function):
    """aten._fused_rms_norm: keeps x and 1 / root, a number per token in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, enable_gqa: bool) -> Tensor:
    return _FlashAttention.apply(q, k, v)


class _FlashAttention(torch.autograd.Function):
    """aten._scaled_dot_product_flash_attention (FlashAttention 2): keeps its output, and a logarithm per row in fp32.

    The backward pass adds up dq in fp32, where tensors are narrower, and takes another number per row. Gradients of
    grouped keys and values are made for every query head, then added up.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)  # [B, H, T, E], in memory [B, T, H, E] as q
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        workspace = [q.new_empty(q.shape, dtype=torch.float32), q.new_empty(q.shape[:-1], dtype=torch.float32)]
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        if k.shape != q.shape:
            workspace += [torch.empty_like(q), torch.empty_like(q)]
        del workspace
        return tuple(gradients)
