"""Fira's weight update: GaLore's, and the gradient's residual scaled like it (arXiv 2410.01623)."""

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from kernels.arguments import WEIGHT_DTYPES, check_matrix, check_same, hyper
from kernels.backend import on_its_device, uses_triton
from kernels.fira_update import in_torch
from kernels.fira_update.reference import Side
from kernels.rounding import check_key, round_to


@on_its_device
@torch.no_grad()
def fira_update_(
    W: Tensor,
    G: Tensor,
    P: Tensor,
    R: Tensor,
    N: Tensor,
    previous: Tensor | None,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    *,
    side: Side = "left",
    key: int | None = None,
    decay_after: bool = False,
) -> Tensor:
    """W <- (1 - lr weight_decay) W - lr (scale P N + E / limiter) in place; the limiter's new state (0-d fp32).

    Fira (arXiv 2410.01623, algorithm 1): E = (G - scale P R) s is the part of the gradient that the projection leaves
    out, each column scaled as the optimizer scaled the projected one, s = |N| / (|R| + 1e-8). limiter =
    max(|E| / (previous + 1e-8), 1.01) / 1.01, and the state is |E| / limiter: pass it as `previous` at the next step,
    None at the first, which limits nothing. `lr` is the step size with the bias correction.

    W (rows, cols) and G the gradient. Projection from the left, for rows < cols: P (rows, rank) with orthonormal
    columns, R = P^T G, the optimizer's step N (rank, cols). From the `right`: P (rank, cols) with orthonormal rows,
    R = G P^T, N (rows, rank), products N P and R P, and s by rows. W and G fp32 or bf16; P, R, N both fp32 or bf16.

    On a GPU this is one product and two reads of G: |E| follows from the norms of G and R, to 2e-6 in fp32. Where E
    holds less than 1e-2 of G's energy, as the device finds without telling the host, E is formed to measure it. bf16
    factors leave up to 1 % of error in |E| at that threshold, as they are not quite orthonormal.

    `lr`, `scale`, `weight_decay`, `key`, `decay_after` as in `kernels.low_rank_update.low_rank_update_`. ValueError for
    shapes, dtypes or devices that do not fit, rows that are not contiguous, or a key with an fp32 W.
    """
    _check(W, G, P, R, N, side, key)
    before = torch.full((), torch.inf, device=W.device) if previous is None else previous
    if before.shape != () or before.dtype != torch.float32:
        raise ValueError(f"previous is {before.dtype} {tuple(before.shape)}; it must be a 0-d fp32 tensor or None")
    check_same({"W": W, "previous": before}, "device")
    if uses_triton(W) and W.numel() and R.numel():
        from kernels.fira_update.in_triton import launch_fira_update

        parameters = hyper(lr, scale, weight_decay, device=W.device)
        state = launch_fira_update(W, G, P, R, N, before, parameters, side, key, decay_after)
        increment_version(W)
        return state
    settings = before, float(lr), float(scale), float(weight_decay), side, decay_after
    if W.dtype == torch.float32:
        return in_torch.fira_update_(W, G, P, R, N, *settings)
    new = W.float()  # and so the factors, that only the result is rounded
    state = in_torch.fira_update_(new, G, P.float(), R.float(), N.float(), *settings)
    W.copy_(round_to(new, W.dtype, key))
    return state


def _check(W: Tensor, G: Tensor, P: Tensor, R: Tensor, N: Tensor, side: Side, key: int | None) -> None:
    if not W.ndim == P.ndim == 2:
        raise ValueError("W and P must be matrices")
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}; it must be left or right")
    rows, cols = W.shape
    rank = P.shape[1 if side == "left" else 0]
    projector, low_rank = ((rows, rank), (rank, cols)) if side == "left" else ((rank, cols), (rows, rank))
    for name, matrix, shape in (("W", W, (rows, cols)), ("G", G, (rows, cols)), ("P", P, projector)):
        check_matrix(name, matrix, shape, WEIGHT_DTYPES)
    for name, matrix in (("R", R), ("N", N)):
        check_matrix(name, matrix, low_rank, WEIGHT_DTYPES)
    check_same({"P": P, "R": R, "N": N}, "dtype")
    check_same({"W": W, "G": G, "P": P, "R": R, "N": N}, "device")
    check_key(key, W.dtype)
