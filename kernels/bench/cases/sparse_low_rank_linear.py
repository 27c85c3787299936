"""Forward and backward pass of the layer against a dense linear of the same shape and against the paper's algorithm."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench import paper
from kernels.bench.case import Alternatives, Case
from kernels.bench.inputs import LLAMA_1B, LLAMA_7B_UP, LLAMA_60M, LLAMA_350M, Inputs, Projection
from kernels.sparse_low_rank_linear import Choice, StepCache, csr, sparse_low_rank_linear

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


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    inputs = Inputs(device, dtype)
    for shape, tokens in shapes(device):
        layer = _Layer(inputs, shape, tokens)
        yield from _cases(layer, f"{shape}, {tokens} tokens", choices(device, dtype), dtype)


def alternatives(device: torch.device, dtype: torch.dtype) -> Iterator[Alternatives]:
    """W built ("dense") or never built ("csr"), where both work."""
    if device.type != "cpu" or dtype != torch.float32 or not csr.available():
        return
    inputs = Inputs(device, dtype)
    for shape, tokens in shapes(device):
        layer = _Layer(inputs, shape, tokens)
        sizes = (shape.n_out, shape.n_in, shape.rank, layer.support.nnz, tokens)
        ways = {"dense": layer.ours(Choice()), "csr": layer.ours(Choice(path="csr"))}
        yield Alternatives("sparse_low_rank_linear", sizes, dtype, ways)


def _cases(layer: "_Layer", shape: str, choices: dict[str, Choice], dtype: torch.dtype) -> Iterator[Case]:
    for name, choice in choices.items():
        peers = {DENSE: layer.dense(_micro_steps(choice)), paper.NAME: layer.published(_micro_steps(choice))}
        yield Case(name, shape, dtype, layer.ours(choice), peers)


def _micro_steps(choice: Choice) -> int:
    return MICRO_STEPS if choice == KEPT else 1


class _Layer:
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
        def step() -> None:
            for _ in range(micro_steps):
                self._backward(F.linear(self.x, self.weight))

        return self._from_zero(step)

    def published(self, micro_steps: int) -> Callable[[], None]:
        def step() -> None:
            for _ in range(micro_steps):
                self._backward(paper.linear(self.x, self.A, self.B, self.values, self.index, self.scale))

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
