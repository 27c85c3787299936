"""What one linear costs in memory, against the formula: per parameter, per support entry, saved, and at its peak.

With N tokens, s bytes per number of the computation and p per parameter:
    parameters  p (rank (out + in) + nnz)
    support     2 nnz + 4 (tiles + 1), block: 4 blocks
    saved       nothing but the input; W: s out in (kept over a layer); N rank s (csr, block)
    at its peak one dense matrix (s out in) beside inputs, outputs and gradients; none (csr, block)
"""

import pytest
import torch
from memory import LiveMemory

from kernels.sparse_low_rank_linear import Choice
from kernels.support import count_tiles
from model.linear import SparseLowRank, build_linear

OUT, IN, RANK, TOKENS = 512, 768, 16, 32
DENSE = OUT * IN
SMALL = TOKENS * (OUT + IN + 2 * RANK) + 3 * RANK * (OUT + IN)
"""Numbers in inputs, outputs, products with the factors and the factors' gradients, where each may exist twice."""


def make(support, param_dtype=torch.float32):
    config = SparseLowRank.Config(rank=RANK, alpha=8.0, density=0.05, support=support)
    linear = build_linear(config, IN, OUT, "q")
    linear.reset_parameters(0)
    return linear.to(param_dtype)


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("support", ["element", "block"])
def test_parameters_and_support(support, param_dtype):
    linear = make(support, param_dtype)
    nnz = linear.values.numel()
    assert nnz == pytest.approx(0.05 * DENSE, rel=0.2)
    assert sum(p.nbytes for p in linear.parameters()) == param_dtype.itemsize * (RANK * (OUT + IN) + nnz)
    tiles, blocks = 4 * (count_tiles((OUT, IN)) + 1), nnz // linear.values[0].numel()
    assert sum(b.nbytes for b in linear.buffers()) == (2 * nnz + tiles if support == "element" else 4 * blocks)


WAYS = {
    "rebuilt": ("element", Choice(), 0, 1),
    "layer": ("element", Choice(keep="layer"), DENSE, 2),
    "csr": ("element", Choice(path="csr"), TOKENS * RANK, 0),
    "block": ("block", None, TOKENS * RANK, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("support", "choice", "saved", "dense_matrices"), WAYS.values(), ids=WAYS)
def test_saved_and_peak(support, choice, saved, dense_matrices, dtype):
    if choice == Choice(path="csr") and dtype != torch.float32:
        return
    linear = make(support, dtype)
    linear.support.choice = choice
    x = torch.randn(TOKENS, IN, dtype=dtype, requires_grad=True)
    grad_y = torch.ones(TOKENS, OUT, dtype=dtype)
    with LiveMemory() as memory:
        memory.ignore(x, grad_y, *linear.parameters(), *linear.buffers())
        linear(x).backward(grad_y)  # what is derived from the support once exists now
        linear.zero_grad()
        x.grad = None
        memory.forget()
        y = linear(x)
        assert memory.live == pytest.approx(dtype.itemsize * (TOKENS * OUT + saved), abs=64)
        y.backward(grad_y)
        del y
    gradients = sum(p.nbytes for p in linear.parameters()) + x.nbytes
    assert memory.live == pytest.approx(gradients, abs=64)
    values = 8 * linear.values.numel()  # copies of values in other orders and dtypes
    assert memory.peak <= dtype.itemsize * (dense_matrices * DENSE + SMALL + values)
    assert memory.peak >= dtype.itemsize * dense_matrices * DENSE
