"""Causal attention on a CPU out of batched matmuls, one block of queries after another.

A block attends to the keys up to its own end alone, so that nearly half of the products are never made, and of the
mask only the triangle at that end is left. The softmax is in fp32, of scores in fp32: it is their differences that
count, and bf16 would round scores of 30 to steps of 1/8. Everything else is multiplied in the dtype of the inputs.

The backward pass is that of FlashAttention (arXiv 2205.14135, appendix B.2): with probabilities P and dP = dY V^T, the
scores' gradient is dS = P * (dP - rowsum(dP * P)); then dQ = dS K / sqrt(E), dK = dS^T Q / sqrt(E), dV = P^T dY. P is
kept for it up to KEPT_BYTES, and calculated again beyond: the same bits.

Shapes: B batch, T tokens, H query heads, K key and value heads, G = H / K, E head width. Heads of all sequences lie
in a row: keys and values [B K, T, E], queries [B K, T G, E], the G of a position one after another. A part of the work
is n heads of that row, in few calls for many heads.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT_BYTES = 64 * 1024**2
"""Keep no more probabilities than this between the passes of one call."""

BLOCK_BYTES = 2 * 1024**2
"""Probabilities of a part's block for each thread: few enough for its caches, enough for what a call costs."""

BLOCK = 128
"""Queries of a block. Fewer skip more of what is masked, more keep the products fast."""

SMALL_BLOCK, SMALL_BLOCK_TOKENS = 64, 512
"""Queries of a block in fp32 or wider, whose products need fewer; up to so many tokens."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over each position's own and earlier keys: [B, H, T, E], in memory [B, T, H, E].

    q [B, H, T, E]; k and v [B, K, T, E], K dividing H; one dtype, any strides. Differentiable once.
    """
    return _Attention.apply(q, k, v, torch.is_grad_enabled())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, grad_enabled):
        work = _Work(q, k)
        q_, k_, v_ = (work.flat(x) for x in (q, k, v))
        y_ = torch.empty_like(q_)
        room = KEPT_BYTES if grad_enabled and any(ctx.needs_input_grad[:3]) else 0
        kept = []
        for part in work.parts:
            n, wide_q, wide_k = part.stop - part.start, q_[part].to(work.wide), k_[part].to(work.wide)
            store = None
            room -= n * work.scores_per_head * q.element_size()
            if room >= 0:
                store = q.new_empty(n * work.scores_per_head)
                kept.append(store)
            for block in work.blocks:
                P = work.probabilities(wide_q, wide_k, block, store)
                work.multiply(P, v_[part, : block.end], y_[part, block.rows])
        ctx.save_for_backward(q, k, v, *kept)
        return work.heads(y_, q)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        work = _Work(q, k)
        q_, k_, v_, dy_ = (work.flat(x) for x in (q, k, v, grad))
        dq_, dk_, dv_ = (torch.empty_like(x) for x in (q_, k_, v_))
        dP_buffer, dS_buffer = work.buffer(q.dtype), work.buffer(q.dtype)
        for number, part in enumerate(work.parts):
            n, store = part.stop - part.start, kept[number] if number < len(kept) else None
            if store is None:
                wide_q, wide_k = q_[part].to(work.wide), k_[part].to(work.wide)
            for block in reversed(work.blocks):
                rows, keys = block.rows, slice(block.end)
                if store is None:
                    P = work.probabilities(wide_q, wide_k, block, None)
                else:
                    P = block.scores_in(store, n, kept=True)
                dP, dS = block.scores_in(dP_buffer, n), block.scores_in(dS_buffer, n)
                torch.bmm(dy_[part, rows], work.compact(v_[part, keys]).transpose(1, 2), out=dP)
                torch._softmax_backward_data(dP, P, -1, P.dtype, grad_input=dS)
                work.multiply(dS, k_[part, keys], dq_[part, rows], work.scale)
                adds = block.end < work.tokens  # the last block has all keys and comes first
                work.multiply(P.transpose(1, 2), dy_[part, rows], dv_[part, keys], 1.0, adds)
                work.multiply(dS.transpose(1, 2), q_[part, rows], dk_[part, keys], work.scale, adds)
        return work.heads(dq_, q), work.heads(dk_, k), work.heads(dv_, v), None


@dataclass(frozen=True)
class _Block:
    """Queries at positions from `start` to `end`, and the keys before `end`."""

    start: int
    end: int
    groups: int
    """Query heads of a key head."""
    before: int
    """Scores of a key head in the blocks before this one."""

    @property
    def rows(self) -> slice:
        """Where a part has these queries."""
        return slice(self.start * self.groups, self.end * self.groups)

    @property
    def scores(self) -> int:
        """How many, of one key head."""
        return (self.end - self.start) * self.groups * self.end

    def scores_in(self, memory: Tensor, n: int, kept: bool = False) -> Tensor:
        """[n, rows, keys] at the start of `memory`, or with `kept` where it has them beside all other blocks'."""
        start = n * self.before if kept else 0
        return memory[start : start + n * self.scores].view(n, -1, self.end)


class _Work:
    """One call cut into parts and blocks, and the memory that these share."""

    def __init__(self, q: Tensor, k: Tensor):
        batch, n_heads, self.tokens, width = q.shape
        self.kv_heads = k.shape[1]
        self.groups, self.scale = n_heads // self.kv_heads, 1 / math.sqrt(width)
        self.dtype, self.wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        self._small = self.dtype == self.wide and self.tokens <= SMALL_BLOCK_TOKENS
        size = min(SMALL_BLOCK if self._small else BLOCK, self.tokens)
        self.blocks: list[_Block] = []
        self.scores_per_head = 0
        for start in range(0, self.tokens, size):
            block = _Block(start, min(start + size, self.tokens), self.groups, self.scores_per_head)
            self.blocks.append(block)
            self.scores_per_head += block.scores
        largest = max((block.scores for block in self.blocks), default=0)
        most_heads = max(1, torch.get_num_threads() * BLOCK_BYTES // max(1, largest * q.element_size()))
        n = batch * self.kv_heads
        heads = -(-n // -(-n // most_heads)) if n else 1  # in parts of about one size
        self.parts = [slice(first, min(first + heads, n)) for first in range(0, n, heads)]
        self._new, self._numel = q.new_empty, heads * largest
        self._later = q.new_full((size, size), -math.inf, dtype=self.wide).triu_(1).unsqueeze(1)  # [rows, 1, rows]
        self._scores = self.buffer(self.wide)
        if self._small:
            self._product = q.new_empty(heads * max(self.tokens, size * self.groups) * width)
        self._narrow = self._scores if self.dtype == self.wide else self.buffer(self.dtype)

    def buffer(self, dtype: torch.dtype) -> Tensor:
        """Memory for the scores of a part's largest block."""
        return self._new(self._numel, dtype=dtype)

    def probabilities(self, q: Tensor, k: Tensor, block: _Block, store: Tensor | None) -> Tensor:
        """P of a block [n, rows, keys], in `store` if there is one; else until the next call. q and k are wide."""
        n = len(k)
        scores = block.scores_in(self._scores, n)
        keys = k[:, : block.end].transpose(1, 2)
        torch.baddbmm(scores, q[:, block.rows], keys, beta=0, alpha=self.scale, out=scores)
        rows = block.end - block.start
        diagonal = scores.view(n, rows, self.groups, block.end)[..., block.start :]
        diagonal.add_(self._later[:rows, :, :rows])
        P = block.scores_in(self._narrow, n) if store is None else block.scores_in(store, n, kept=True)
        if self.dtype == self.wide:
            return torch.softmax(scores, -1, out=P)
        return P.copy_(torch.softmax(scores, -1, out=scores))

    def multiply(self, left: Tensor, right: Tensor, out: Tensor, scale: float = 1.0, adds: bool = False) -> None:
        """Write scale left right to `out`, or with `adds` add it.

        Where `out` has gaps, MKL multiplies one matrix of the batch after another, each on all threads: small ones are
        first made where there are none.
        """
        if not self._small or out.is_contiguous():
            torch.baddbmm(out, left, right, beta=int(adds), alpha=scale, out=out)
            return
        product = self._product[: out.numel()].view(out.shape)
        torch.baddbmm(product, left, right, beta=0, alpha=scale, out=product)
        if adds:
            out.add_(product)
        else:
            out.copy_(product)

    def flat(self, x: Tensor) -> Tensor:
        """x [B, H or K, T, E] as [B K, T G, E], G being 1 for keys and values."""
        grouped = x.unflatten(1, (self.kv_heads, -1)).transpose(2, 3)  # [B, K, T, G, E]
        return grouped.flatten(2, 3).flatten(0, 1).contiguous()

    def heads(self, flat: Tensor, like: Tensor) -> Tensor:
        """The inverse of `flat`: like [B, H or K, T, E], in memory [B, T, H or K, E], which is what a linear reads."""
        batch, heads, tokens, width = like.shape
        out = like.new_empty(batch, tokens, self.kv_heads, heads // self.kv_heads, width)
        out.copy_(flat.view(batch, self.kv_heads, tokens, -1, width).transpose(1, 2))
        return out.flatten(2, 3).transpose(1, 2)

    def compact(self, x: Tensor) -> Tensor:
        """x whose transpose multiplies fast: oneDNN would copy a strided one number by number."""
        return x if self.dtype == self.wide else x.contiguous()
