"""The fastest way through one sparse-plus-low-rank linear."""

import torch

from kernels.backend import backend
from kernels.dispatch import fastest
from kernels.sparse_low_rank_linear import csr
from kernels.sparse_low_rank_linear.choice import Choice, Keep

SPARSE_COST = 10
"""A sparse multiplication costs a CPU as much as ten dense ones (measured: 5 to 12)."""

CSR_SMALLEST_SIDE = 256
"""Below this the CSR path's many small calls cost more than the dense matmuls they save (measured)."""

FUSED_BELOW_RANK = 256
"""Below this rank building W is bound by writing it, so one kernel that writes it once wins (a roofline estimate)."""


def choose(
    shape: tuple[int, int],
    rank: int,
    nnz: int,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    keep: Keep = "none",
    accumulate: bool = False,
) -> Choice:
    """For a linear of `shape` (out, in) on micro-batches of `tokens` tokens; `keep` and `accumulate` if W is built."""
    n_out, n_in = shape
    if device.type == "cpu" and dtype == torch.float32 and backend() != "triton" and csr.available():
        factored = rank * (n_out + n_in) + SPARSE_COST * nnz < n_out * n_in and min(shape) >= CSR_SMALLEST_SIDE
        sizes = (n_out, n_in, rank, nnz, tokens)
        if fastest("sparse_low_rank_linear", device, dtype, sizes, "csr" if factored else "dense") == "csr":
            return Choice(path="csr")
    if device.type != "cuda":
        return Choice(keep=keep, accumulate=accumulate)
    rule = "fused" if rank < FUSED_BELOW_RANK else "matmul"
    build = fastest("decompress", device, dtype, (n_out, n_in, rank, nnz), rule)
    return Choice(keep=keep, accumulate=accumulate, fused=build == "fused")
