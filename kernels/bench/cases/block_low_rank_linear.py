"""Forward and backward pass of the seven linears of a layer, block-sparse plus low-rank, against dense ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.case import Case
from kernels.block_low_rank_linear import block_low_rank_linear
from kernels.block_support import BlockSupport, choose_block

DENSE = "nn.Linear"


@dataclass(frozen=True)
class Layer:
    """The projections of one layer of a LLaMA model: four square ones, gate, up and down."""

    dim: int
    ffn_dim: int
    rank: int
    density: float

    @property
    def projections(self) -> list[tuple[int, int]]:
        """(out, in) of the seven."""
        return [(self.dim, self.dim)] * 4 + [(self.ffn_dim, self.dim)] * 2 + [(self.dim, self.ffn_dim)]


LLAMA_60M = Layer(512, 1376, 128, 0.03)
LLAMA_1B = Layer(2048, 5504, 512, 0.03)
"""The published width of 5461 has no block that divides it."""
LLAMA_7B = Layer(4096, 11008, 1024, 0.05)


def layers(device: torch.device) -> list[tuple[Layer, int]]:
    """Layers, each with the tokens of a micro-step."""
    if device.type != "cuda":
        return [(LLAMA_60M, 1024)]
    return [(layer, tokens) for layer in (LLAMA_1B, LLAMA_7B) for tokens in (2048, 8192)]


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for layer, tokens in layers(device):
        linears = [_Linear(shape, layer, tokens, device, dtype) for shape in layer.projections]
        blocks = ", ".join(dict.fromkeys(f"{one.support.k} of {one.support.block}" for one in linears))
        name = f"seven linears {layer.dim}/{layer.ffn_dim} rank {layer.rank} blocks {blocks}, {tokens} tokens"
        yield Case(
            "block_low_rank_linear",
            name,
            dtype,
            _each([linear.factored for linear in linears]),
            {DENSE: _each([linear.dense for linear in linears])},
        )


def _each(works: list[Callable[[], None]]) -> Callable[[], None]:
    def work() -> None:
        for one in works:
            one()

    return work


class _Linear:
    """One linear's tensors, and its forward and backward pass over them, gradients starting from nothing."""

    def __init__(self, shape: tuple[int, int], layer: Layer, tokens: int, device: torch.device, dtype: torch.dtype):
        random = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random, device=device, dtype=dtype)

        n_out, n_in = shape
        block, k = choose_block(shape, layer.density)
        columns = BlockSupport.draw(shape, block, k, torch.Generator().manual_seed(0)).columns
        self.support = BlockSupport(columns.to(device), shape, block)
        sizes = ((layer.rank, n_in), (n_out, layer.rank), (self.support.n_blocks, block, block))
        self.parameters = [(normal(*size) * n_in**-0.5).requires_grad_() for size in sizes]
        self.weight = (normal(n_out, n_in) * n_in**-0.5).requires_grad_()
        self.x, self.grad_y = normal(tokens, n_in).requires_grad_(), normal(tokens, n_out)
        self.scale = 8 / layer.rank

    def factored(self) -> None:
        A, B, values = self.parameters
        y = block_low_rank_linear(self.x, A, B, values, self.support, self.scale)
        torch.autograd.grad(y, [self.x, A, B, values], self.grad_y)

    def dense(self) -> None:
        torch.autograd.grad(F.linear(self.x, self.weight), [self.x, self.weight], self.grad_y)
