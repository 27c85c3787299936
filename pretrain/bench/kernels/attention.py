"""Causal attention, forward and backward, against PyTorch's, at shapes of shipped models."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.attention import attention
from pretrain.bench.kernels.inputs import Inputs
from pretrain.bench.timing import Case

SHAPES = [(8, 6, 256, 48), (8, 8, 256, 64), (2, 8, 1024, 64), (1, 32, 1024, 128), (2, 6, 512, 48)]
"""Batch, heads, tokens, head width."""

PYTORCH = "scaled_dot_product_attention"


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for batch, heads, tokens, width in SHAPES:
        # As a linear leaves them: the heads of a token side by side.
        q, k, v, grad = (inputs.normal(batch, tokens, heads, width).transpose(1, 2) for _ in range(4))
        step = partial(_forward_and_backward, q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad)
        peer = partial(F.scaled_dot_product_attention, is_causal=True)
        shape = f"{batch} sequences of {tokens}, {heads} heads of {width}"
        yield Case("attention", shape, dtype, partial(step, attention), {PYTORCH: partial(step, peer)})


def _forward_and_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, way: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    torch.autograd.grad(way(q, k, v), (q, k, v), grad)
