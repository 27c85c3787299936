"""Causal grouped-query attention: in blocks of plain matmuls on a CPU, where that is faster, else PyTorch's own."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import check_same
from kernels.attention import in_torch

__all__ = ["attention", "in_blocks"]


@dataclass(frozen=True)
class Blocks:
    """Where blocks are the faster way on a CPU (measured) and repeat bit for bit."""

    fewest_scores: int
    """Scores of all heads of one sequence: what the calls of a block cost has to be small beside them."""
    fewest_tokens: int
    multiple: int
    """Divides the tokens: MKL multiplies a few left-over rows of fp32 in an order that depends on threads."""


IN_BLOCKS = {torch.bfloat16: Blocks(2**14, 1, 1), torch.float32: Blocks(2**18, 256, in_torch.SMALL_BLOCK)}


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v, each position over its own and earlier keys (arXiv 1706.03762, equation 1).

    q [B, H, T, E]; k and v [B, K, T, E], each head of which serves H / K query heads in a row (arXiv 2305.13245); one
    dtype, any strides. Returns [B, H, T, E]. The softmax is in fp32 or wider. Differentiable once.

    Which way it is calculated depends on shapes, dtype and kind of device alone, so that runs repeat. ValueError for
    shapes, dtypes or devices that do not fit.
    """
    _check(q, k, v)
    if in_blocks(q):
        return in_torch.attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])


def in_blocks(q: Tensor) -> bool:
    """Whether queries q [B, H, T, E] are worked on in blocks. Tensors without data (device meta) go a CPU's way."""
    if q.device.type not in ("cpu", "meta") or q.is_cuda or q.dtype not in IN_BLOCKS:
        return False
    if q.dtype == torch.bfloat16 and not _multiplies_bf16():
        return False
    (n_heads, tokens), blocks = q.shape[1:3], IN_BLOCKS[q.dtype]
    enough = tokens >= blocks.fewest_tokens and n_heads * tokens**2 >= blocks.fewest_scores
    return enough and tokens % blocks.multiple == 0


@functools.cache
def _multiplies_bf16() -> bool:
    """Whether this processor's matmuls of bf16 are oneDNN's: others are slow."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError("q, k and v must be [batch, heads, tokens, width]")
    (batch, n_heads, tokens, width), kv_heads = q.shape, k.shape[1]
    if not kv_heads or n_heads % kv_heads:
        raise ValueError(f"{n_heads} query heads cannot share {kv_heads} key heads: it must divide them")
    for name, x in (("k", k), ("v", v)):
        if x.shape != (batch, kv_heads, tokens, width):
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {(batch, kv_heads, tokens, width)}")
    check_same({"q": q, "k": k, "v": v}, "dtype")
    check_same({"q": q, "k": k, "v": v}, "device")
