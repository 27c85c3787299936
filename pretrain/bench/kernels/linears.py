"""Forward and backward passes of the sparse-plus-low-rank linears against dense ones of the same shapes.

The SLTrain linear is also compared with the paper's algorithm, over an optimizer step of one linear. The block-sparse
one is timed over the seven linears of a layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.block_low_rank_linear import block_low_rank_linear
from kernels.block_support import BlockSupport, choose_block
from kernels.sparse_low_rank_linear import Choice, StepCache, csr, sparse_low_rank_linear
from pretrain.bench.kernels import paper
from pretrain.bench.kernels.inputs import LLAMA_1B, LLAMA_7B_UP, LLAMA_60M, LLAMA_350M, Inputs, Projection
from pretrain.bench.timing import Alternatives, Case

DENSE = "nn.Linear"
MICRO_STEPS = 16
KEPT = Choice(keep="step", accumulate=True)


def choices(device: torch.device, dtype: torch.dtype) -> dict[str, Choice]:
    """What is timed, by name."""
    found = {
        "sparse_low_rank_linear": Choice(),
        "sparse_low_rank_linear kept over a layer": Choice(keep="layer"),
        f"sparse_low_rank_linear kept over {MICRO_STEPS} micro-steps": KEPT,
    }
    if device.type == "cuda":
        found["sparse_low_rank_linear built in one kernel"] = Choice(fused=True)
    elif dtype == torch.float32 and csr.available():
        found["sparse_low_rank_linear factored"] = Choice(path="csr")
    return found


def shapes(device: torch.device) -> list[tuple[Projection, int]]:
    """Projections, each with the tokens of a micro-step."""
    if device.type != "cuda":
        return [(shape, 1024) for shape in LLAMA_60M]
    return [
        *((shape, 16384) for shape in LLAMA_60M + LLAMA_350M),
        *((shape, 8192) for shape in LLAMA_1B),
        (LLAMA_7B_UP, 2048),
        (LLAMA_7B_UP, 16384),
    ]


def sparse_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape, tokens in shapes(device):
        layer = _SparseLinear(inputs, shape, tokens)
        for name, choice in choices(device, dtype).items():
            peers = {DENSE: layer.dense(_micro_steps(choice)), paper.NAME: layer.published(_micro_steps(choice))}
            yield Case(name, f"{shape}, {tokens} tokens", dtype, layer.ours(choice), peers)


def alternatives(device: torch.device, dtype: torch.dtype) -> Iterator[Alternatives]:
    """W built ("dense") or never built ("csr"), where both work."""
    if device.type != "cpu" or dtype != torch.float32 or not csr.available():
        return
    inputs = Inputs(device, dtype)
    for shape, tokens in shapes(device):
        layer = _SparseLinear(inputs, shape, tokens)
        sizes = (shape.n_out, shape.n_in, shape.rank, layer.support.nnz, tokens)
        ways = {"dense": layer.ours(Choice()), "csr": layer.ours(Choice(path="csr"))}
        yield Alternatives("sparse_low_rank_linear", sizes, dtype, ways)


def _micro_steps(choice: Choice) -> int:
    return MICRO_STEPS if choice == KEPT else 1


class _SparseLinear:
    """One layer's tensors; its methods return forward and backward passes of one optimizer step."""

    def __init__(self, inputs: Inputs, shape: Projection, tokens: int):
        *factors, self.support = inputs.factors(shape)
        self.A, self.B, self.values = (tensor.requires_grad_() for tensor in factors)
        self.weight = inputs.normal(shape.n_out, shape.n_in).requires_grad_()
        self.x, self.grad_y = inputs.normal(tokens, shape.n_in).requires_grad_(), inputs.normal(tokens, shape.n_out)
        self.index, self.scale = self.support.flat().long(), shape.scale

    def ours(self, choice: Choice) -> Callable[[], None]:
        cache = StepCache()

        def step() -> None:
            cache.clear()  # after a step the parameters are others
            for left in reversed(range(_micro_steps(choice))):
                cache.last_micro_step = left == 0
                inputs = (self.x, self.A, self.B, self.values, self.support, self.scale)
                self._backward(sparse_low_rank_linear(*inputs, choice=choice, cache=cache))

        return self._from_zero(step)

    def dense(self, micro_steps: int) -> Callable[[], None]:
        return self._repeated(micro_steps, F.linear, self.x, self.weight)

    def published(self, micro_steps: int) -> Callable[[], None]:
        inputs = (self.x, self.A, self.B, self.values, self.index, self.scale)
        return self._repeated(micro_steps, paper.linear, *inputs)

    def _repeated(self, micro_steps: int, linear: Callable[..., Tensor], *inputs: object) -> Callable[[], None]:
        def step() -> None:
            for _ in range(micro_steps):
                self._backward(linear(*inputs))

        return self._from_zero(step)

    def _backward(self, y: Tensor) -> None:
        self.x.grad = None  # the gradient of x goes on to the layer before, it is not summed
        y.backward(self.grad_y)

    def _from_zero(self, step: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            for parameter in (self.A, self.B, self.values, self.weight):
                parameter.grad = None
            step()

        return work


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


LAYER_60M = Layer(512, 1376, 128, 0.03)
LAYER_1B = Layer(2048, 5504, 512, 0.03)
"""The published width of 5461 has no block that divides it."""
LAYER_7B = Layer(4096, 11008, 1024, 0.05)


def layers(device: torch.device) -> list[tuple[Layer, int]]:
    """Layers, each with the tokens of a micro-step."""
    if device.type != "cuda":
        return [(LAYER_60M, 1024)]
    return [(layer, tokens) for layer in (LAYER_1B, LAYER_7B) for tokens in (2048, 8192)]


def block_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for layer, tokens in layers(device):
        linears = [_BlockLinear(shape, layer, tokens, device, dtype) for shape in layer.projections]
        blocks = ", ".join(dict.fromkeys(f"{one.support.k} of {one.support.block}" for one in linears))
        name = f"seven linears {layer.dim}/{layer.ffn_dim} rank {layer.rank} blocks {blocks}, {tokens} tokens"
        ours, dense = each([linear.factored for linear in linears]), each([linear.dense for linear in linears])
        yield Case("block_low_rank_linear", name, dtype, ours, {DENSE: dense})


def each(works: list[Callable[[], None]]) -> Callable[[], None]:
    """All of `works` as one."""

    def work() -> None:
        for one in works:
            one()

    return work


class _BlockLinear:
    """One linear's tensors, and its forward and backward pass over them, gradients starting from nothing."""

    def __init__(self, shape: tuple[int, int], layer: Layer, tokens: int, device: torch.device, dtype: torch.dtype):
        normal = Inputs(device, dtype).normal
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
