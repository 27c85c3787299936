"""The path on a CPU in fp32: the factors and a compressed sparse S one after the other, W never exists.

With N tokens the cost is 6 N (rank (out + in) + nnz) FLOPs, forward and backward, against 6 N out in of the dense path;
at the paper's ranks a half to two thirds of the time. PyTorch's sparse matmul multiplies CSR matrices with row-major
ones from the left, so tokens are turned into columns, in chunks that stay in the processor's cache.
"""

import functools
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.support import TileSupport

CHUNK = 256
"""Tokens per chunk: the transposed copies of a chunk stay in the second-level cache at widths up to about 1000."""


class Compressed(NamedTuple):
    """Row pointers, columns and the place of each entry in the support's own order, of S or of its transpose."""

    rows: Tensor
    columns: Tensor
    order: Tensor

    def matrix(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        """The sparse CSR tensor with `values` given in the support's order."""
        return self.raw(values.index_select(0, self.order), shape)

    def raw(self, values: Tensor, shape: tuple[int, int]) -> Tensor:
        return torch.sparse_csr_tensor(self.rows, self.columns, values, shape, check_invariants=False)


@functools.cache
def available() -> bool:
    """Whether this build of PyTorch multiplies sparse fp32 matrices on the CPU (it needs MKL)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its sparse CSR support beta, once
        try:
            eye = torch.eye(2)
            sparse = eye.to_sparse_csr()
            torch.sparse.sampled_addmm(sparse, eye, eye, beta=0.0)
            return bool(torch.equal(sparse @ eye, eye))
        except RuntimeError:
            return False


class CSRPath(torch.autograd.Function):
    """y (..., out) of x (..., in), A, B, values, support and scale, x in fp32 on a CPU."""

    @staticmethod
    def forward(ctx, x, A, B, values, support, scale):
        ctx.support, ctx.scale = support, scale
        A_, B_ = A.to(x.dtype), B.to(x.dtype)
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        z = flat @ A_.t()  # [N, R]
        sparse = _compressed(support, transposed=False).matrix(values.to(x.dtype), support.shape)
        y = torch.empty(flat.shape[0], B.shape[0], dtype=x.dtype)
        for start in range(0, flat.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            columns = sparse @ transposed(flat[rows])  # [O, n]
            torch.addmm(transposed(columns), z[rows], B_.t(), alpha=scale, out=y[rows])
        ctx.save_for_backward(x, z, A, B, values)
        return y.view(*x.shape[:-1], B.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, z, A, B, values = ctx.saved_tensors
        support, scale = ctx.support, ctx.scale
        need_x, need_A, need_B, need_values, _, _ = ctx.needs_input_grad
        grad_x = grad_A = grad_B = grad_values = None
        A_, B_ = A.to(x.dtype), B.to(x.dtype)
        g = grad_y.reshape(-1, B.shape[0])  # [N, O]
        flat = x.reshape(-1, A.shape[1])  # [N, I]
        u = g @ B_  # [N, R]
        grad_x = torch.empty_like(flat) if need_x else None
        by_row, by_column = _compressed(support, transposed=False), _compressed(support, transposed=True)
        sparse_t = by_column.matrix(values.to(x.dtype), support.shape[::-1])
        total = by_row.raw(torch.zeros(support.nnz, dtype=x.dtype), support.shape)
        for start in range(0, flat.shape[0] if need_x or need_values else 0, CHUNK):
            rows = slice(start, start + CHUNK)
            columns = transposed(g[rows])  # [O, n]
            if grad_x is not None:
                torch.addmm(transposed(sparse_t @ columns), u[rows], A_, alpha=scale, out=grad_x[rows])
            if need_values:
                total = torch.sparse.sampled_addmm(total, columns, transposed(flat[rows]).t())
        if need_A:
            grad_A = (u.t() @ flat).mul_(scale).to(A.dtype)
        if need_B:
            grad_B = (g.t() @ z).mul_(scale).to(B.dtype)
        if need_values:
            grad_values = torch.empty_like(values)
            grad_values[by_row.order] = total.values().to(values.dtype)
        return None if grad_x is None else grad_x.view_as(x), grad_A, grad_B, grad_values, None, None


def transposed(matrix: Tensor) -> Tensor:
    """The transpose (columns, rows) of `matrix` (rows, columns), contiguous.

    Numbers laid out as the channels of one pixel, in as many groups as there are rows, are transposed by a shuffle of
    channels. PyTorch has vector instructions for that one, and takes three times as long over `.t().contiguous()`.
    """
    rows, columns = matrix.shape
    numel = rows * columns
    pixel = matrix.contiguous().as_strided((1, numel, 1, 1), (numel, 1, numel, numel))  # channels last
    return torch.channel_shuffle(pixel, rows).reshape(columns, rows)


def _compressed(support: TileSupport, transposed: bool) -> Compressed:
    return support.derived("csc" if transposed else "csr", lambda: _compress(support, transposed))


def _compress(support: TileSupport, transposed: bool) -> Compressed:
    rows, columns = support.flat().long() // support.shape[1], support.flat().long() % support.shape[1]
    n_rows, n_columns = support.shape
    if transposed:
        rows, columns, n_rows, n_columns = columns, rows, n_columns, n_rows
    order = torch.argsort(rows * n_columns + columns)
    pointers = torch.zeros(n_rows + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(rows, minlength=n_rows).cumsum(0)
    return Compressed(pointers, columns[order].to(torch.int32), order)
