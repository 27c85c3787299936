"""What a CPU does in operations that tensors without data do not have."""

from typing import Any

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, enable_gqa: bool) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)[0]


class Sparse:
    """A sparse CSR matrix as far as the linears of a CPU use it: its parts are tensors."""

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], **options: Any):
        self.rows, self.columns, self.kept, self.shape = rows, columns, values, shape

    def __matmul__(self, dense: Tensor) -> Tensor:
        return dense.new_empty(self.shape[0], dense.shape[1])

    def values(self) -> Tensor:
        return self.kept

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented  # so that torch's functions take it, and hand it to the mode


def sampled_addmm(matrix: Sparse, left: Tensor, right: Tensor) -> Sparse:
    """A copy, with its places."""
    return Sparse(matrix.rows.clone(), matrix.columns.clone(), matrix.kept.clone(), matrix.shape)
