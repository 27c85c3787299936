"""Causal attention on a CPU out of batched matmuls, one block of queries after another.

A block attends to the keys up to its own end alone, so that nearly half of the products are never made, and of the
mask only the triangle at that end is left. The softmax is in fp32, of scores in fp32: it is their differences that
count, and bf16 would round scores of 30 to steps of 1/8. Everything else is multiplied in the dtype of the inputs.

The backward pass is that of FlashAttention (arXiv 2205.14135, appendix B.2): with probabilities P and dP = dY V^T, the
scores' gradient is dS = P * (dP - rowsum(dP * P)); then dQ = dS K / sqrt(E), dK = dS^T Q / sqrt(E), dV = P^T dY. P is
kept for it up to KEPT_BYTES, and calculated again beyond: the same bits.

Shapes: B batch, T tokens, H query heads, K key and value heads, G = H / K, E head width. A part of the work is n key
heads of one sequence with their query heads, whose queries are [n, T G, E]: the G of a position one after another.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT_BYTES = 64 * 1024**2
"""Keep no more probabilities than this between the passes of one call."""

BLOCK_SCORES = 2**19
"""Scores of a part's block for each thread: few enough for its caches, enough for what a call costs."""

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
        work, y = _Work(q, k), _heads_side_by_side(q)
        room = KEPT_BYTES if grad_enabled and any(ctx.needs_input_grad[:3]) else 0
        kept = []
        for part in work.parts:
            q_, k_, v_, y_ = work.queries(q, part), k[part], v[part], work.output(y, part)
            wide_q, wide_k = q_.to(work.wide), k_.to(work.wide)
            store = None
            room -= len(k_) * work.scores_per_head * q.element_size()
            if room >= 0:
                store = q.new_empty(len(k_) * work.scores_per_head)
                kept.append(store)
            for block in work.blocks:
                P = work.probabilities(wide_q, wide_k, block, store)
                work.multiply(P, v_[:, : block.end], y_[:, block.rows])
            work.put(y_, y, part)
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        work, (dq, dk, dv) = _Work(q, k), map(_heads_side_by_side, (q, k, v))
        dP_buffer, dS_buffer = work.buffer(q.dtype), work.buffer(q.dtype)
        for number, part in enumerate(work.parts):
            q_, k_, v_, dy = work.queries(q, part), k[part], v[part], work.queries(grad, part)
            dq_, dk_, dv_ = work.output(dq, part), dk[part], dv[part]
            store = kept[number] if number < len(kept) else None
            if store is None:
                wide_q, wide_k = q_.to(work.wide), k_.to(work.wide)
            for block in reversed(work.blocks):
                rows, keys, n = block.rows, slice(block.end), len(k_)
                if store is None:
                    P = work.probabilities(wide_q, wide_k, block, None)
                else:
                    P = block.scores_in(store, n, kept=True)
                dP, dS = block.scores_in(dP_buffer, n), block.scores_in(dS_buffer, n)
                torch.bmm(dy[:, rows], work.compact(v_[:, keys]).transpose(1, 2), out=dP)
                torch._softmax_backward_data(dP, P, -1, P.dtype, grad_input=dS)
                work.multiply(dS, k_[:, keys], dq_[:, rows], work.scale)
                adds = block.end < work.tokens  # the last block has all keys and comes first
                work.multiply(P.transpose(1, 2), dy[:, rows], dv_[:, keys], 1.0, adds)
                work.multiply(dS.transpose(1, 2), q_[:, rows], dk_[:, keys], work.scale, adds)
            work.put(dq_, dq, part)
        return dq, dk, dv, None


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


Part = tuple[int, slice]
"""The number of a sequence, and its key heads."""


class _Work:
    """One call cut into parts and blocks, and the memory that these share."""

    def __init__(self, q: Tensor, k: Tensor):
        batch, n_heads, self.tokens, width = q.shape
        kv_heads = k.shape[1]
        self.groups, self.scale = n_heads // kv_heads, 1 / math.sqrt(width)
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
        most_heads = max(1, torch.get_num_threads() * BLOCK_SCORES // max(1, largest))
        heads = -(-kv_heads // -(-kv_heads // most_heads))  # in parts of about one size
        self.parts: list[Part] = [
            (i, slice(first, min(first + heads, kv_heads))) for i in range(batch) for first in range(0, kv_heads, heads)
        ]
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

    def queries(self, x: Tensor, part: Part) -> Tensor:
        """A part's [n, T G, E] of x [B, H, T, E]."""
        sequence, heads = part
        if self.groups == 1:
            return x[sequence, heads]
        return x[sequence].unflatten(0, (-1, self.groups))[heads].transpose(1, 2).flatten(1, 2)

    def output(self, x: Tensor, part: Part) -> Tensor:
        """Memory for a part's [n, T G, E] of x [B, H, T, E], which `put` then brings there."""
        sequence, heads = part
        if self.groups == 1:
            return x[sequence, heads]
        return self._new(heads.stop - heads.start, self.tokens * self.groups, x.shape[3])

    def put(self, written: Tensor, x: Tensor, part: Part) -> None:
        sequence, heads = part
        if self.groups > 1:
            there = x[sequence].unflatten(0, (-1, self.groups))[heads]
            there.copy_(written.unflatten(1, (-1, self.groups)).transpose(1, 2))

    def compact(self, x: Tensor) -> Tensor:
        """x whose transpose multiplies fast: oneDNN would copy a strided one number by number."""
        return x if self.dtype == self.wide else x.contiguous()


def _heads_side_by_side(x: Tensor) -> Tensor:
    """Memory for a tensor like x [B, H, T, E], where a token has its heads together: what a linear reads."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)
