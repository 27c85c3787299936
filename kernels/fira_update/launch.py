"""What Fira's update launches, in order."""

from typing import Any

import torch
import triton
from torch import Tensor

from kernels.fira_update import kernel
from kernels.fira_update.reference import Side
from kernels.low_rank_update.kernel import factor_constants, weight_tile
from kernels.rounding import signed_key


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
    """W in place; the limiter's new state. hyper = (lr, scale, weight decay) and `previous`, fp32 on the device."""
    right = side == "right"
    norms = torch.linalg.vector_norm(G, dim=int(right), dtype=torch.float32)
    n_vectors, n_blocks = norms.numel(), triton.cdiv(norms.numel(), kernel.VECTORS)
    scaling, limited = torch.empty_like(norms), torch.empty_like(N)
    sums, state, shrink = (torch.empty(size, device=W.device) for size in (3 * n_blocks, (), ()))
    rank = P.shape[0 if right else 1]
    blocks = {"VECTORS": kernel.VECTORS, "RANK_BLOCK": kernel.RANK_BLOCK, "num_warps": 4}
    strides = [stride for X in (R, N) for stride in _strides(X, right)]
    kernel.fira_energy_kernel[(n_blocks,)](norms, R, N, hyper, scaling, sums, n_vectors, rank, *strides, **blocks)
    energies = _launch_residual(G, P, R, hyper, scaling, sums, n_blocks, right)
    kernel.fira_limit_kernel[n_blocks, triton.cdiv(rank, kernel.RANK_BLOCK)](
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
    grid, tile = _tiles(W, first, second)
    kernel.fira_update_kernel[grid](
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
    grid, tile = _tiles(G, first, second)
    energies = torch.empty(grid[0] * grid[1], device=G.device)
    kernel.fira_residual_kernel[grid](
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


def _tiles(W: Tensor, first: Tensor, second: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    factors = factor_constants(first, second)
    tile = weight_tile(W.shape[0], W.shape[1], first.shape[1], factors)
    grid = (triton.cdiv(W.shape[1], tile["COLS"]), triton.cdiv(W.shape[0], tile["ROWS"]))
    return grid, {"DTYPE": factors["DTYPE"], **tile}


def _strides(X: Tensor, right: bool) -> tuple[int, int]:
    """(of the rank, of the vectors)."""
    return (X.stride(1), X.stride(0)) if right else (X.stride(0), X.stride(1))
