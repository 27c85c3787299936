"""The SLTrain linear: y = x W^T with W = scale B A + S, where S has a fixed random support (arXiv 2406.02214).

Two paths lead through it: dense.py builds W, with the kernels of `kernels.decompress`; csr.py never does (fp32 on a
CPU). choice.py tells which is the fastest.
"""

import torch
from torch import Tensor

from kernels.eight_bit_linear import EightBit
from kernels.sparse_low_rank_linear.choice import Choice, StepCache
from kernels.sparse_low_rank_linear.csr import CSRPath
from kernels.sparse_low_rank_linear.dense import DensePath
from kernels.support import TileSupport

__all__ = ["Choice", "StepCache", "sparse_low_rank_linear"]


def sparse_low_rank_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    values: Tensor,
    support: TileSupport,
    scale: float,
    *,
    choice: Choice = Choice(),  # noqa: B008, frozen
    cache: StepCache | None = None,
    eight_bit: EightBit | None = None,
) -> Tensor:
    """y (..., out) = x W^T with W = scale B A + S, S holding `values` at `support`.

    x (..., in), A (rank, in), B (out, rank), values (nnz,). Everything is computed in the dtype of x; each gradient
    has the dtype of its tensor. `cache` is where a choice with keep = "step" keeps W. With `eight_bit` its products are
    those of `kernels.eight_bit_linear`, which need the path through the dense W. Differentiable once. ValueError when
    the shapes do not belong together, or there is no W to multiply in eight bits.
    """
    support.check_factors(A, B, values)
    if x.shape[-1:] != A.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last side must be {A.shape[1]}")
    if choice.path == "csr":
        if eight_bit is not None:
            raise ValueError("the csr path has no W whose products could be in eight bits")
        return CSRPath.apply(x, A, B, values, support, scale)
    if eight_bit is None and cache is not None and choice.keep == "step" and not torch.is_grad_enabled():
        weight = cache.weight((A, B, values), (x.dtype, None))
        if weight is not None:  # nothing to record: a token at a time, autograd would take longer than the product
            return x @ weight.t()
    return DensePath.apply(x, A, B, values, support, scale, choice, cache, eight_bit)
