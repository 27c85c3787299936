"""SwiGLU and RoPE on a GPU, from Liger Kernel (arXiv 2410.10989; extra `gpu`): one pass over memory instead of several.

Two more of its operations are not used. RMSNorm: PyTorch's own is one kernel since 2.9. Fused linear cross entropy: it
makes the host wait for the device in both passes and rounds the weight's gradient to the dtype of the logits;
kernels/linear_cross_entropy does neither.
"""

import importlib.util
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.backend import backend, on_its_device

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The kernels calculate in fp32."""


def available(tensor: Tensor) -> bool:
    """Whether the functions below take `tensor`. Imports nothing.

    Tensors without data (device meta) that pass for a GPU's need no Liger Kernel: they get its outputs' memory.
    """
    if not tensor.is_cuda or tensor.dtype not in DTYPES or backend() == "torch":
        return False
    return _installed() or tensor.is_meta


@cache
def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("triton", "liger_kernel"))


@on_its_device
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up for tensors of one shape (arXiv 2002.05202).

    The backward pass writes the gradients over gate and up, which saves their memory: nothing else may need them then.
    PyTorch notices a use that does, such as a second backward pass, and raises RuntimeError. Differentiable once.
    """
    return _SwiGLU.apply(gate.contiguous(), up.contiguous())


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        if gate.is_meta:
            ctx.save_for_backward(gate, up)
            return torch.empty_like(gate)
        from liger_kernel.ops.swiglu import swiglu_forward

        ctx.save_for_backward(gate, up)
        return swiglu_forward(gate, up)[2]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad.is_meta:
            grad.contiguous()
            return ctx.saved_tensors
        from liger_kernel.ops.swiglu import swiglu_backward

        gate, up = ctx.saved_tensors
        grads = swiglu_backward(gate, up, grad.contiguous())
        increment_version((gate, up))
        return grads


@on_its_device
def rope(q: Tensor, k: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, T, H, E] and k [B, T, K, E], each pair (x[i], x[i + E/2]) turned by its position's angle.

    tables [2, T, E/2]: cos and sin (arXiv 2104.09864); must not change. The rotation is in place, in the memory of
    q and k and of the gradients that come back: the caller gives them up. Differentiable once.
    """
    return _Rope.apply(q, k, *_wide(tables))


def _wide(tables: Tensor) -> Tensor:
    """cos and sin [2, 1, T, E] in fp32, made once: every layer uses the same, and keeps them for its backward pass."""
    wide = _wide_tables.get(tables)
    if wide is None:
        with torch.inference_mode(False), torch.no_grad():
            # [1, T, E]: Liger 0.8.0 takes the first side for a batch. In fp32 the kernel rounds only its result.
            wide = _wide_tables[tables] = tables.float().repeat(1, 1, 2).unsqueeze(1)
    return wide


_wide_tables = WeakTensorKeyDictionary()
"""Wide tables by the identity of narrow ones, for as long as those live."""


class _Rope(torch.autograd.Function):
    """Liger's functions take [B, H, T, E]; the kernel itself works on [B, T, H, E]."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        if q.is_meta:
            increment_version((q, k))
            return q.view_as(q), k.view_as(k)
        from liger_kernel.ops.rope import rope_forward

        turned_q, turned_k, *_ = rope_forward(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        increment_version((q, k))
        return turned_q.transpose(1, 2), turned_k.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q, grad_k):
        if grad_q.is_meta:
            return grad_q, grad_k, None, None
        from liger_kernel.ops.rope import rope_backward

        cos, sin = ctx.saved_tensors
        turned_q, turned_k = rope_backward(grad_q.transpose(1, 2), grad_k.transpose(1, 2), cos, sin)
        return turned_q.transpose(1, 2), turned_k.transpose(1, 2), None, None
