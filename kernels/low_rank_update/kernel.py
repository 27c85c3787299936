"""Triton kernels of the low-rank weight update: a product whose epilogue reads, changes and writes W once."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.low_rank_update.tile import decayed, low_rank_tile, store_weight
from kernels.quant.format import Quantized
from kernels.quant.kernel import load_codes, quantize_groups, random_fractions, store_codes
from kernels.rounding import signed_key

MANY_TILES = 256
"""Fewer tiles of 128 x 64 than this leave most GPUs' multiprocessors idle: smaller ones are taken."""

BOUND_BY_MEMORY = 256
"""Up to this rank moving W takes longer than the product on most GPUs."""


@triton.jit(do_not_specialize=["key"])
def low_rank_update_kernel(
    W,
    P,
    p_scales,
    p_zeros,
    N,
    n_scales,
    n_zeros,
    hyper,
    n_rows,
    n_cols,
    rank,
    key,
    stride_w,
    stride_p,
    stride_n,
    DTYPE: tl.constexpr,
    P_BITS: tl.constexpr,
    P_GROUP: tl.constexpr,
    N_BITS: tl.constexpr,
    N_GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECAY_AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """Grid (blocks of columns, blocks of rows)."""
    col0, row0 = tl.program_id(0) * COLS, tl.program_id(1) * ROWS
    o_row, o_col = row0 + tl.arange(0, ROWS), col0 + tl.arange(0, COLS)
    m_row = o_row < n_rows
    acc = low_rank_tile(
        P,
        p_scales,
        p_zeros,
        N,
        n_scales,
        n_zeros,
        o_row,
        m_row,
        col0,
        n_cols,
        rank,
        stride_p,
        stride_n,
        DTYPE,
        P_BITS,
        P_GROUP,
        N_BITS,
        N_GROUP,
        ROWS,
        COLS,
        RANK_BLOCK,
    )
    decay, rate = decayed(hyper, DECAY_AFTER)
    m_w = m_row[:, None] & (o_col < n_cols)[None, :]
    p_w = W + o_row[:, None] * stride_w + o_col[None, :]  # [ROWS, COLS]
    b_w = tl.load(p_w, mask=m_w, other=0.0).to(tl.float32)
    b_w = decay * b_w - rate * tl.load(hyper + 1) * acc
    store_weight(p_w, b_w, m_w, key, o_row[:, None] * n_cols + o_col[None, :], STOCHASTIC)


@triton.jit(do_not_specialize=["key"])
def low_rank_update_quantized_kernel(
    codes,
    scales,
    zeros,
    P,
    p_scales,
    p_zeros,
    N,
    n_scales,
    n_zeros,
    hyper,
    n_rows,
    n_cols,
    rank,
    key,
    stride_p,
    stride_n,
    DTYPE: tl.constexpr,
    P_BITS: tl.constexpr,
    P_GROUP: tl.constexpr,
    N_BITS: tl.constexpr,
    N_GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECAY_AFTER: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    """The same for W in 8 bits: a tile is one group wide, so that its scales and zeros are new. Grid (groups, rows)."""
    i_group = tl.program_id(0)
    col0, row0 = i_group * GROUP, tl.program_id(1) * ROWS
    o_row, o_col = row0 + tl.arange(0, ROWS), col0 + tl.arange(0, GROUP)
    m_row = o_row < n_rows
    acc = low_rank_tile(
        P,
        p_scales,
        p_zeros,
        N,
        n_scales,
        n_zeros,
        o_row,
        m_row,
        col0,
        n_cols,
        rank,
        stride_p,
        stride_n,
        DTYPE,
        P_BITS,
        P_GROUP,
        N_BITS,
        N_GROUP,
        ROWS,
        GROUP,
        RANK_BLOCK,
    )
    decay, rate = decayed(hyper, DECAY_AFTER)
    o_scale = o_row * tl.num_programs(0) + i_group
    b_scale = tl.load(scales + o_scale, mask=m_row, other=0.0)
    b_zero = tl.load(zeros + o_scale, mask=m_row, other=0).to(tl.int32)
    b_code = load_codes(codes, o_row, m_row, col0, n_cols, 8, GROUP)  # [ROWS, GROUP]
    b_w = (b_code - b_zero[:, None]).to(tl.float32) * b_scale[:, None]
    b_w = decay * b_w - rate * tl.load(hyper + 1) * acc
    b_w = tl.where((o_col < n_cols)[None, :], b_w, 0.0)
    if STOCHASTIC:
        carry = random_fractions(key, o_row[:, None] * n_cols + o_col[None, :])
    else:
        carry = 0.5
    b_code, b_scale, b_zero = quantize_groups(b_w, carry, 255)
    store_codes(codes, b_code, o_row, m_row, col0, n_cols, 8, GROUP)
    tl.store(scales + o_scale, b_scale, mask=m_row)
    tl.store(zeros + o_scale, b_zero.to(tl.uint8), mask=m_row)


def launch_low_rank_update(
    W: Tensor, P: Tensor | Quantized, N: Tensor | Quantized, hyper: Tensor, key: int | None, decay_after: bool
) -> None:
    """W (rows, cols) fp32 or bf16, in place; hyper = (lr, scale, weight decay) fp32 on the device."""
    (n_rows, n_cols), rank = W.shape, P.shape[1]
    factors = factor_constants(P, N)
    tile = weight_tile(n_rows, n_cols, rank, factors)
    grid = (triton.cdiv(n_cols, tile["COLS"]), triton.cdiv(n_rows, tile["ROWS"]))
    low_rank_update_kernel[grid](
        W,
        *factor_pointers(P),
        *factor_pointers(N),
        hyper,
        n_rows,
        n_cols,
        rank,
        signed_key(key),
        W.stride(0),
        factor_stride(P),
        factor_stride(N),
        STOCHASTIC=key is not None,
        DECAY_AFTER=decay_after,
        **factors,
        **tile,
    )


def launch_low_rank_update_quantized(
    W: Quantized, P: Tensor | Quantized, N: Tensor | Quantized, hyper: Tensor, key: int | None, decay_after: bool
) -> None:
    """W (rows, cols) in 8 bits, in place; hyper = (lr, scale, weight decay) fp32 on the device."""
    (n_rows, n_cols), rank = W.shape, P.shape[1]
    tile = quantized_tile()
    low_rank_update_quantized_kernel[W.scales.shape[1], triton.cdiv(n_rows, tile["ROWS"])](
        W.codes,
        W.scales,
        W.zeros,
        *factor_pointers(P),
        *factor_pointers(N),
        hyper,
        n_rows,
        n_cols,
        rank,
        signed_key(key),
        factor_stride(P),
        factor_stride(N),
        STOCHASTIC=key is not None,
        DECAY_AFTER=decay_after,
        GROUP=W.group,
        **factor_constants(P, N),
        **tile,
    )


def weight_tile(n_rows: int, n_cols: int, rank: int, factors: dict[str, Any]) -> dict[str, int]:
    """Sizes and options of a launch on a W that is not quantised."""
    if factors["DTYPE"] == tl.float32:  # no tensor core multiplies fp32
        rows, cols, block, num_warps = 64, 64, 16, 4
    elif n_cols % 16 or triton.cdiv(n_rows, 128) * triton.cdiv(n_cols, 64) < MANY_TILES:
        # Elements that are loaded one by one, for want of alignment, would spill the registers of larger tiles.
        rows, cols, block, num_warps = 64, 64, 32, 4
    elif rank <= BOUND_BY_MEMORY:  # several programs on a multiprocessor: while one multiplies, another moves W
        rows, cols, block, num_warps = 128, 64, 32, 4
    else:
        rows, cols, block, num_warps = 128, 128, 64, 8
    if factors["P_BITS"] or factors["N_BITS"]:
        block = min(block, 32)  # registers
        cols = min(cols, factors["N_GROUP"] or cols)  # a tile of N lies in one group
    return {"ROWS": rows, "COLS": cols, "RANK_BLOCK": block, "num_warps": num_warps, "num_stages": 3}


def quantized_tile() -> dict[str, int]:
    return {"ROWS": 64, "RANK_BLOCK": 32, "num_warps": 16, "num_stages": 3}


def factor_pointers(F: Tensor | Quantized) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return (F.codes, F.scales, F.zeros) if isinstance(F, Quantized) else (F, None, None)


def factor_stride(F: Tensor | Quantized) -> int:
    return 0 if isinstance(F, Quantized) else F.stride(0)


def factor_constants(P: Tensor | Quantized, N: Tensor | Quantized) -> dict[str, Any]:
    """How the factors are stored, and the dtype they are multiplied in: that of the one that is not quantised."""
    dense = N if isinstance(P, Quantized) else P
    assert isinstance(dense, Tensor)
    bits = [(F.bits, F.group) if isinstance(F, Quantized) else (0, 0) for F in (P, N)]
    return {
        "DTYPE": tl.float32 if dense.dtype == torch.float32 else tl.bfloat16,
        "P_BITS": bits[0][0],
        "P_GROUP": bits[0][1],
        "N_BITS": bits[1][0],
        "N_GROUP": bits[1][1],
    }
