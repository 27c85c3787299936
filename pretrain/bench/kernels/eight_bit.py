"""Products in eight bits against those in the dtype of the activations, and what quantising costs beside them.

On a GPU at the size of a 7B recipe: 16,384 tokens through the feed-forward's three projections. INT8 multiplies
two to four times as fast as bf16 there, and two of three products are in it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import uses_triton
from kernels.code_product import product
from kernels.eight_bit_linear import EightBit, eight_bit_linear
from kernels.row_codes import Format, quantize_rows
from kernels.row_codes.format import multiplies_fp8
from kernels.sparse_low_rank_linear import Choice, sparse_low_rank_linear
from pretrain.bench.kernels.inputs import LLAMA_7B_UP, LLAMA_60M, Inputs, Projection
from pretrain.bench.kernels.linears import DENSE, each
from pretrain.bench.timing import Alternatives, Case

TOKENS = {"cuda": 16384, "cpu": 1024}


def formats(device: torch.device) -> list[Format]:
    """Formats that `device` multiplies faster than bf16; a CPU emulates FP8."""
    return ["int8", "fp8"] if multiplies_fp8(device) else ["int8"]


def hows(device: torch.device) -> Iterator[tuple[str, EightBit]]:
    for format in formats(device):
        yield format, EightBit(format)
        yield f"{format}, all three products", EightBit(format, weight_gradient_too=True)


def feed_forward(device: torch.device) -> list[tuple[int, int]]:
    """(out, in) of gate, up and down: of 7B on a GPU, of 60M elsewhere."""
    shape = LLAMA_7B_UP if device.type == "cuda" else LLAMA_60M[1]
    return [(shape.n_out, shape.n_in)] * 2 + [(shape.n_in, shape.n_out)]


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    tokens = TOKENS[device.type]
    inputs = Inputs(device, dtype)
    linears = [_Linear(inputs, shape, tokens) for shape in feed_forward(device)]
    (n_out, n_in), shape = feed_forward(device)[0], f"{len(linears)} linears of a feed-forward"
    for name, how in hows(device):
        ours = each([partial(linear.run, partial(eight_bit_linear, how=how)) for linear in linears])
        plain = each([partial(linear.run, F.linear) for linear in linears])
        yield Case(f"eight_bit_linear {name}", f"{shape} {n_out}x{n_in}, {tokens} tokens", dtype, ours, {DENSE: plain})
    del linears
    sparse = LLAMA_7B_UP if device.type == "cuda" else LLAMA_60M[1]
    for name, how in hows(device):
        ours, plain = (_sparse(inputs, sparse, tokens, eight_bit) for eight_bit in (how, None))
        yield Case(
            f"sparse_low_rank_linear {name}", f"{sparse}, {tokens} tokens", dtype, ours, {"plain products": plain}
        )
    for format in formats(device):
        x, W = inputs.normal(tokens, n_in), inputs.normal(n_out, n_in)
        a, b = quantize_rows(x, format), quantize_rows(W, format)
        multiply = partial(product, a, b, dtype)
        for what, matrix in (("W", W), ("x", x)):
            yield Case(
                f"quantize_rows {format}",
                f"{what} {matrix.shape[0]}x{n_in}",
                dtype,
                partial(quantize_rows, matrix, format),
                {f"the product of {tokens} tokens": multiply},
                matrix.numel() * (dtype.itemsize + 1),
            )
        yield Case(
            f"code_product {format}",
            f"{tokens} tokens {n_out}x{n_in}",
            dtype,
            multiply,
            {DENSE: partial(F.linear, x, W)},
        )


def alternatives(device: torch.device, dtype: torch.dtype) -> Iterator[Alternatives]:
    """The tiles of a product of codes, where kernels run; once, whatever the dtype of activations."""
    inputs = Inputs(device, dtype)
    if dtype != torch.bfloat16 or not uses_triton(inputs.normal(1)):
        return
    from kernels.code_product.in_triton import launch_product, tiles

    for n_out, n_in in dict.fromkeys([*feed_forward(device), (LLAMA_7B_UP.n_in, LLAMA_7B_UP.n_in)]):
        for tokens in (2048, TOKENS[device.type]):
            for format in formats(device):
                a, b = (quantize_rows(inputs.normal(rows, n_in), format) for rows in (tokens, n_out))
                y = inputs.normal(tokens, n_out)
                ways = {
                    name: partial(launch_product, a, b, y, tile) for name, tile in tiles(device, a.codes.dtype).items()
                }
                yield Alternatives("code_product", (tokens, n_out, a.codes.shape[1]), a.codes.dtype, ways)


class _Linear:
    """One dense linear's tensors."""

    def __init__(self, inputs: Inputs, shape: tuple[int, int], tokens: int):
        n_out, n_in = shape
        self.weight = (inputs.normal(n_out, n_in) * n_in**-0.5).requires_grad_()
        self.x, self.grad_y = inputs.normal(tokens, n_in).requires_grad_(), inputs.normal(tokens, n_out)

    def run(self, linear: Callable[[Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(linear(self.x, self.weight), [self.x, self.weight], self.grad_y)


def _sparse(inputs: Inputs, shape: Projection, tokens: int, how: EightBit | None) -> Callable[[], None]:
    """A forward and backward pass of the SLTrain linear."""
    A, B, values, support = inputs.factors(shape)
    leaves = [tensor.requires_grad_() for tensor in (inputs.normal(tokens, shape.n_in), A, B, values)]
    grad_y, choice = inputs.normal(tokens, shape.n_out), Choice(keep="layer")

    def work() -> None:
        x, A, B, values = leaves
        y = sparse_low_rank_linear(x, A, B, values, support, shape.scale, choice=choice, eight_bit=how)
        torch.autograd.grad(y, leaves, grad_y)

    return work
