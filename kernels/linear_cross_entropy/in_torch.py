"""Output head and cross-entropy in plain PyTorch: logits exist for one chunk of tokens at a time.

With a vocabulary of 32000 the logits of 16k tokens take 2 GB in fp32, their softmax and gradient as much again. The
loss is a sum over tokens, so its gradients can be formed in the forward pass, chunk by chunk, while the logits are
there; the backward pass only scales them (the idea of Liger Kernel's fused linear cross entropy, arXiv 2410.10989).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_BYTES = 64 * 1024**2
"""Aim for the fp32 logits of one chunk."""

MIN_CHUNK = 128
"""Tokens that keep the chunk's matmuls efficient, however large the vocabulary."""

PART_ROWS = 4096
"""Rows of the weight's gradient that are computed at once: what is alive twice."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, chunk_tokens: int | None = None
) -> Tensor:
    """Sum over tokens of the negative log-likelihood in nats of `targets` under softmax(hidden weight^T); fp32, 0-d.

    hidden (..., dim), weight (vocab, dim), targets (...) int64; tokens whose target is `ignore_index` count nothing.
    Matmuls run in the dtype of hidden, the softmax in fp32 (fp64 for fp64 input, whose result is fp64 too); the
    weight's gradient is summed over chunks in that precision. `chunk_tokens` overrides the size of a chunk.
    Differentiable once.
    """
    if chunk_tokens is None:
        chunk_tokens = max(MIN_CHUNK, LOGITS_BYTES // (4 * weight.shape[0]))
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, chunk_tokens, torch.is_grad_enabled())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, ignore_index, chunk_tokens, grad_enabled):
        need_hidden, need_weight = (grad_enabled and need for need in ctx.needs_input_grad[:2])
        n_tokens, dtype = hidden.shape[0], hidden.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weight_ = weight.to(dtype)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if need_weight else None
        # One buffer serves all chunks: fresh memory of this size costs page faults on a CPU.
        buffer = torch.empty(min(chunk_tokens, n_tokens), weight.shape[0], dtype=wide, device=hidden.device)

        for start in range(0, n_tokens, chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            h, target = hidden[rows], targets[rows]
            logits = buffer[: h.shape[0]]  # [n, V]
            if dtype == wide:
                torch.mm(h, weight_.t(), out=logits)
            else:
                logits.copy_(h @ weight_.t())
            counted = (target != ignore_index).to(wide)  # [n]
            target = target.where(target != ignore_index, 0).unsqueeze(1)  # [n, 1]

            logits.sub_(logits.amax(1, keepdim=True))
            target_logit = logits.gather(1, target).squeeze(1)
            total = logits.exp_().sum(1)  # logits is now the softmax times total
            loss += torch.dot(total.log() - target_logit, counted)

            if need_hidden or need_weight:
                # d nll / d logits = (exp - total at the target) / total, row by row. Dividing the rows of the matmuls'
                # narrow operands instead of `logits` saves a pass over the vocabulary.
                logits.scatter_add_(1, target, -total.unsqueeze(1))
                row_scale = (counted / total).unsqueeze(1)
                grad_logits = logits.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad_logits @ weight_) * row_scale
                if grad_weight is not None:
                    scaled = (h * row_scale).to(dtype)
                    for part in _parts(grad_weight):
                        grad_weight[part] += grad_logits[:, part].t() @ scaled

        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_loss.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = _scaled(grad_weight, grad_loss, ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _scaled(wide: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`wide` times `factor`, rounded to `dtype`; narrowed by parts, so that there is no second wide copy."""
    if dtype == wide.dtype:
        return wide * factor
    narrow = torch.empty_like(wide, dtype=dtype)
    for part in _parts(wide):
        narrow[part] = wide[part] * factor
    return narrow


def _parts(matrix: Tensor) -> Iterator[slice]:
    """Slices of PART_ROWS rows of `matrix`."""
    return (slice(start, start + PART_ROWS) for start in range(0, len(matrix), PART_ROWS))
