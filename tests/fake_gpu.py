"""Fake tensors on a machine without a GPU that take the paths of one.

What PyTorch does on a GPU in one operation, and on a CPU in several or in another one, is stood in for here: outputs,
what is saved for the backward pass, and workspace are allocated as CUDA's operations do, and nothing is computed. Not
counted, here as in the plan: workspace of cuBLAS and cuSOLVER, and what the allocator leaves unused. Grouped-query
attention has no stand-in. Random numbers that the code draws on the CPU count as the GPU's.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import triton.runtime.jit
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def gpu_paths() -> Iterator[None]:
    """Inside, fake tensors say that they are a GPU's, launches of Triton kernels do nothing, and RMSNorm and attention
    are one operation each. Their device stays the CPU.
    """
    with (
        mock.patch.object(FakeTensor, "is_cuda", property(lambda tensor: True)),
        mock.patch.object(triton.runtime.jit.JITFunction, "run", _launch),
        mock.patch.object(F, "rms_norm", _rms_norm),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
    ):
        yield


def _launch(kernel: Any, *arguments: Any, **options: Any) -> None:
    """No Mock, which would remember the tensors."""


def _rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> Tensor:
    return _FusedRMSNorm.apply(x, weight)


class _FusedRMSNorm(torch.autograd.Function):
    """aten._fused_rms_norm: keeps x and 1 / root, a number per token in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, enable_gqa: bool) -> Tensor:
    if enable_gqa:
        raise NotImplementedError("what flash attention's backward pass expands for grouped queries is not counted")
    return _FlashAttention.apply(q, k, v)


class _FlashAttention(torch.autograd.Function):
    """aten._scaled_dot_product_flash_attention (FlashAttention 2): keeps its output, and a logarithm per row in fp32.

    The backward pass adds up dq in fp32, where tensors are narrower, and takes another number per row.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)  # [B, H, T, E], in memory [B, T, H, E] as q
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        workspace = [torch.empty(q.shape, dtype=torch.float32), torch.empty(q.shape[:-1], dtype=torch.float32)]
        gradients = tuple(torch.empty_like(x) for x in (q, k, v))
        del workspace
        return gradients
