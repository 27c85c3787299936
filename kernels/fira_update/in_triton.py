"""Triton kernels of Fira's update in one product.

With P orthonormal, the energy of a column of the residual E = (G - a P R) s is s^2 (|G|^2 - (2a - a^2) |R|^2), a the
scale: its norm, which the limiter c^-1 needs, takes no product. Then a P N + c E = P N' + c G s with N' = a (N - c R s)
is one. Where the residual is nearly nothing, the difference of the energies is mostly error, and E is formed after all:
every program decides so from the same sums. "Vector" below: a column with projection from the left, else a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fira_update.reference import GROWTH, TINY, Side
from kernels.low_rank_update.in_triton import weight_tiles
from kernels.rounding import signed_key
from kernels.triton_helpers import convert, decayed, low_rank_tile, store_weight

LIMIT = tl.constexpr(GROWTH)

SMALLEST = tl.constexpr(TINY)

EXACT_BELOW = tl.constexpr(1e-2)
"""Share of G's energy in the residual under which the residual is formed."""

VECTORS = 64

RANK_BLOCK = 32


@triton.jit
def total(values, n_values):
    """The sum of `values` (n_values,), in the same order in every program."""
    acc = tl.zeros((256,), dtype=tl.float32)
    for i_value in range(0, n_values, 256):
        o_value = i_value + tl.arange(0, 256)
        acc += tl.load(values + o_value, mask=o_value < n_values, other=0.0)
    return tl.sum(acc, 0)


@triton.jit
def shrinkage(norm, previous):
    """1 / limiter: what keeps `norm` from growing further from the `previous` one than it may."""
    growth = tl.div_rn(norm, previous + SMALLEST)
    return tl.div_rn(LIMIT, tl.where(growth < LIMIT, LIMIT, growth))  # NaN stays NaN


@triton.jit
def needs_residual(sums, n_blocks):
    """Whether the residual must be formed. sums (3, n_blocks): energies of G, of G - a P R, and of E."""
    return total(sums + n_blocks, n_blocks) < EXACT_BELOW * total(sums, n_blocks)


@triton.jit
def fira_energy_kernel(
    norms,
    R,
    N,
    hyper,
    scaling,
    sums,
    n_vectors,
    rank,
    stride_r_rank,
    stride_r_vector,
    stride_n_rank,
    stride_n_vector,
    VECTORS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """scaling (n_vectors,) = |N| / |R| and `sums`, from `norms` of G's vectors. Grid (blocks of vectors,)."""
    i_block, n_blocks = tl.program_id(0), tl.num_programs(0)
    o_vector = i_block * VECTORS + tl.arange(0, VECTORS)
    m_vector = o_vector < n_vectors
    acc_r = tl.zeros((RANK_BLOCK, VECTORS), dtype=tl.float32)
    acc_n = tl.zeros((RANK_BLOCK, VECTORS), dtype=tl.float32)
    for i_rank in range(0, rank, RANK_BLOCK):
        o_rank = i_rank + tl.arange(0, RANK_BLOCK)
        mask = (o_rank < rank)[:, None] & m_vector[None, :]
        p_r = R + o_rank[:, None] * stride_r_rank + o_vector[None, :] * stride_r_vector  # [RANK, VECTORS]
        b_r = tl.load(p_r, mask=mask, other=0.0).to(tl.float32)
        p_n = N + o_rank[:, None] * stride_n_rank + o_vector[None, :] * stride_n_vector
        b_n = tl.load(p_n, mask=mask, other=0.0).to(tl.float32)
        acc_r += b_r * b_r
        acc_n += b_n * b_n
    r2 = tl.sum(acc_r, 0)
    s = tl.div_rn(tl.sqrt_rn(tl.sum(acc_n, 0)), tl.sqrt_rn(r2) + SMALLEST)
    norm = tl.load(norms + o_vector, mask=m_vector, other=0.0)
    scale = tl.load(hyper + 1)
    energy = tl.maximum(norm * norm - (2.0 * scale - scale * scale) * r2, 0.0)
    tl.store(scaling + o_vector, s, mask=m_vector)
    tl.store(sums + i_block, tl.sum(norm * norm, 0))
    tl.store(sums + n_blocks + i_block, tl.sum(energy, 0))
    tl.store(sums + 2 * n_blocks + i_block, tl.sum(energy * s * s, 0))


@triton.jit
def fira_residual_kernel(
    G,
    P,
    N,
    hyper,
    scaling,
    sums,
    energies,
    n_blocks,
    n_rows,
    n_cols,
    rank,
    stride_g,
    stride_p,
    stride_n,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """The energy of each tile of E = (G - a P N) s, if it is needed. Grid (blocks of columns, blocks of rows)."""
    if needs_residual(sums, n_blocks):
        i_col, i_row = tl.program_id(0), tl.program_id(1)
        o_row, o_col = i_row * ROWS + tl.arange(0, ROWS), i_col * COLS + tl.arange(0, COLS)
        m_row, m_col = o_row < n_rows, o_col < n_cols
        acc = low_rank_tile(P, N, o_row, m_row, o_col, m_col, rank, stride_p, stride_n, 1, RANK_BLOCK)
        m_g = m_row[:, None] & m_col[None, :]
        b_g = tl.load(G + o_row[:, None] * stride_g + o_col[None, :], mask=m_g, other=0.0).to(tl.float32)
        b_e = (b_g - tl.load(hyper + 1) * acc) * load_scaling(scaling, o_row, o_col, n_rows, n_cols, RIGHT)
        tl.store(energies + i_row * tl.num_programs(0) + i_col, tl.sum(tl.sum(b_e * b_e, 1), 0))


@triton.jit
def load_scaling(scaling, o_row, o_col, n_rows, n_cols, RIGHT: tl.constexpr):
    """s as [1, COLS], or [ROWS, 1] with projection from the right."""
    if RIGHT:
        return tl.load(scaling + o_row, mask=o_row < n_rows, other=0.0)[:, None]
    else:
        return tl.load(scaling + o_col, mask=o_col < n_cols, other=0.0)[None, :]


@triton.jit
def fira_limit_kernel(
    R,
    N,
    hyper,
    scaling,
    sums,
    energies,
    previous,
    limited,
    state,
    shrink,
    n_blocks,
    n_energies,
    n_vectors,
    rank,
    stride_r_rank,
    stride_r_vector,
    stride_n_rank,
    stride_n_vector,
    stride_l_rank,
    stride_l_vector,
    VECTORS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """The limiter's `state` and its factor `shrink` c, and `limited` N' = a (N - c R s).

    Grid (blocks of vectors, blocks of the rank).
    """
    i_vector, i_rank = tl.program_id(0), tl.program_id(1)
    if needs_residual(sums, n_blocks):
        norm = tl.sqrt_rn(total(energies, n_energies))
    else:
        norm = tl.sqrt_rn(total(sums + 2 * n_blocks, n_blocks))
    c = shrinkage(norm, tl.load(previous))
    if (i_vector == 0) & (i_rank == 0):
        tl.store(state, norm * c)
        tl.store(shrink, c)
    o_vector = i_vector * VECTORS + tl.arange(0, VECTORS)
    o_rank = i_rank * RANK_BLOCK + tl.arange(0, RANK_BLOCK)
    mask = (o_rank < rank)[:, None] & (o_vector < n_vectors)[None, :]
    b_s = tl.load(scaling + o_vector, mask=o_vector < n_vectors, other=0.0)
    p_r = R + o_rank[:, None] * stride_r_rank + o_vector[None, :] * stride_r_vector  # [RANK, VECTORS]
    b_r = tl.load(p_r, mask=mask, other=0.0).to(tl.float32)
    p_n = N + o_rank[:, None] * stride_n_rank + o_vector[None, :] * stride_n_vector
    b_n = tl.load(p_n, mask=mask, other=0.0).to(tl.float32)
    b_limited = tl.load(hyper + 1) * (b_n - c * b_s[None, :] * b_r)
    p_limited = limited + o_rank[:, None] * stride_l_rank + o_vector[None, :] * stride_l_vector
    tl.store(p_limited, convert(b_limited, limited.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["key"])
def fira_update_kernel(
    W,
    G,
    P,
    N,
    hyper,
    scaling,
    shrink,
    n_rows,
    n_cols,
    rank,
    key,
    stride_w,
    stride_g,
    stride_p,
    stride_n,
    RIGHT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECAY_AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """W <- decay W - rate (P N + c G s). Grid (blocks of columns, blocks of rows)."""
    o_row, o_col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * COLS + tl.arange(0, COLS)
    m_row, m_col = o_row < n_rows, o_col < n_cols
    acc = low_rank_tile(P, N, o_row, m_row, o_col, m_col, rank, stride_p, stride_n, 1, RANK_BLOCK)
    m_w = m_row[:, None] & m_col[None, :]
    b_g = tl.load(G + o_row[:, None] * stride_g + o_col[None, :], mask=m_w, other=0.0).to(tl.float32)
    b_s = load_scaling(scaling, o_row, o_col, n_rows, n_cols, RIGHT) * tl.load(shrink)
    decay, rate = decayed(hyper, DECAY_AFTER)
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]  # [ROWS, COLS]
    b_w = tl.load(p_w, mask=m_w, other=0.0).to(tl.float32)
    b_w = decay * b_w - rate * (acc + b_g * b_s)
    store_weight(p_w, b_w, m_w, key, o_row[:, None] * n_cols + o_col[None, :], STOCHASTIC)


def launch_fira_update(
    W: Tensor,
    G: Tensor,
    P: Tensor,
    R: Tensor,
    N: Tensor,
    previous: Tensor,
    hyper: Tensor,
    side: Side,
    key: int | None,
    decay_after: bool,
) -> Tensor:
    """Change W in place; the limiter's new state. hyper = (lr, scale, weight decay) and `previous` are fp32 tensors."""
    right = side == "right"
    norms = torch.linalg.vector_norm(G, dim=int(right), dtype=torch.float32)
    n_vectors, n_blocks = norms.numel(), triton.cdiv(norms.numel(), VECTORS)
    scaling, limited = torch.empty_like(norms), torch.empty_like(N)
    sums, state, shrink = (torch.empty(size, device=W.device) for size in (3 * n_blocks, (), ()))
    rank = P.shape[0 if right else 1]
    blocks = {"VECTORS": VECTORS, "RANK_BLOCK": RANK_BLOCK, "num_warps": 4}
    strides = [stride for X in (R, N) for stride in _strides(X, right)]
    fira_energy_kernel[(n_blocks,)](norms, R, N, hyper, scaling, sums, n_vectors, rank, *strides, **blocks)
    energies = _launch_residual(G, P, R, hyper, scaling, sums, n_blocks, right)
    fira_limit_kernel[n_blocks, triton.cdiv(rank, RANK_BLOCK)](
        R,
        N,
        hyper,
        scaling,
        sums,
        energies,
        previous,
        limited,
        state,
        shrink,
        n_blocks,
        energies.numel(),
        n_vectors,
        rank,
        *strides,
        *_strides(limited, right),
        **blocks,
    )
    first, second = (limited, P) if right else (P, limited)
    grid, tile = weight_tiles(W, first)
    fira_update_kernel[grid](
        W,
        G,
        first,
        second,
        hyper,
        scaling,
        shrink,
        *W.shape,
        rank,
        signed_key(key),
        W.stride(0),
        G.stride(0),
        first.stride(0),
        second.stride(0),
        RIGHT=right,
        STOCHASTIC=key is not None,
        DECAY_AFTER=decay_after,
        **tile,
    )
    return state


def _launch_residual(
    G: Tensor, P: Tensor, R: Tensor, hyper: Tensor, scaling: Tensor, sums: Tensor, n_blocks: int, right: bool
) -> Tensor:
    """Energies of the residual's tiles, left unwritten when nothing will read them."""
    first, second = (R, P) if right else (P, R)
    grid, tile = weight_tiles(G, first)
    energies = torch.empty(grid[0] * grid[1], device=G.device)
    fira_residual_kernel[grid](
        G,
        first,
        second,
        hyper,
        scaling,
        sums,
        energies,
        n_blocks,
        *G.shape,
        first.shape[1],
        G.stride(0),
        first.stride(0),
        second.stride(0),
        RIGHT=right,
        **tile,
    )
    return energies


def _strides(X: Tensor, right: bool) -> tuple[int, int]:
    """Strides of the rank and of the vectors."""
    return (X.stride(1), X.stride(0)) if right else (X.stride(0), X.stride(1))
