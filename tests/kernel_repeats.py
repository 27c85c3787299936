"""Equal inputs give equal bits: every operation with kernels of its own, repeated and compared with its first result.

`PYTHONPATH=. python tests/kernel_repeats.py --device cuda --repeats 1000` prints, by name, how many repeats differed.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels.adam8bit import Adam8bitState, adam8bit_
from kernels.block_low_rank_linear import block_low_rank_linear
from kernels.block_support import BLOCKS, BlockSupport
from kernels.code_product import group_product
from kernels.decompress import decompress, tile_gather
from kernels.eight_bit_linear import EightBit, eight_bit_linear
from kernels.fira_update import fira_update_
from kernels.low_rank_update import low_rank_update_
from kernels.quant import dequantize, quantize
from kernels.row_codes import quantize_rows
from kernels.scaled_update import limit_growth_, scaled_update_
from kernels.sparse_low_rank_linear import sparse_low_rank_linear
from pretrain.bench.kernels.eight_bit import formats as eight_bit_formats
from pretrain.bench.kernels.inputs import LLAMA_60M, LLAMA_350M, Inputs, Projection

TINY = Projection(96, 64, 8, 0.1)
TOKENS = 512
"""So many that the gradient of a few small blocks is split over them."""

KEY = 2**31 + 5
LR, SCALE, DECAY = 0.1, 0.25, 0.01


Work = Callable[[], list[Tensor]]


def works(shape: Projection, inputs: Inputs) -> Iterator[tuple[str, Work]]:
    """Names and functions that return new tensors of the same bits every time."""
    for name, work in (*linears(shape, inputs), *eight_bit(shape, inputs), *updates(shape, inputs)):
        yield f"{name} {shape}", work


def eight_bit(shape: Projection, inputs: Inputs) -> Iterator[tuple[str, Work]]:
    x, W = inputs.normal(TOKENS, shape.n_in), inputs.normal(shape.n_out, shape.n_in)
    leaves, grad_y = [tensor.requires_grad_() for tensor in (x, W)], inputs.normal(TOKENS, shape.n_out)
    for format in eight_bit_formats(x.device):
        for too in (False, True):

            def layer(how: EightBit = EightBit(format, too)) -> list[Tensor]:  # noqa: B008, frozen
                y = eight_bit_linear(leaves[0], leaves[1], how)
                return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]

            yield f"eight_bit_linear by row_codes and code_product, {format}{' too' * too}", layer
    a, weight = quantize_rows(x.detach(), "int8"), quantize(W.detach(), 8, 256)
    yield "group_product", lambda: [group_product(a, weight, torch.bfloat16)]


def linears(shape: Projection, inputs: Inputs) -> Iterator[tuple[str, Work]]:
    A, B, values, support = inputs.factors(shape)
    dense = inputs.normal(shape.n_out, shape.n_in)
    x, grad_y = inputs.normal(TOKENS, shape.n_in), inputs.normal(TOKENS, shape.n_out)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, A, B, values)]

    def layer() -> list[Tensor]:
        y = sparse_low_rank_linear(leaves[0], leaves[1], leaves[2], leaves[3], support, shape.scale)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]

    b = BLOCKS[-1]
    k = max(1, round(shape.density * shape.n_in / b))
    columns = BlockSupport.draw((shape.n_out, shape.n_in), b, k, torch.Generator().manual_seed(0)).columns
    blocks = BlockSupport(columns.to(x.device), (shape.n_out, shape.n_in), b)
    block_leaves = [*leaves[:3], inputs.normal(blocks.n_blocks, b, b).requires_grad_()]

    def block_layer() -> list[Tensor]:
        y = block_low_rank_linear(
            block_leaves[0], block_leaves[1], block_leaves[2], block_leaves[3], blocks, shape.scale
        )
        return [y.detach(), *torch.autograd.grad(y, block_leaves, grad_y)]

    yield "decompress", lambda: [decompress(A, B, values, support, shape.scale)]
    yield "decompress in one kernel", lambda: [decompress(A, B, values, support, shape.scale, fused=True)]
    yield "tile_gather", lambda: [tile_gather(dense, support)]
    yield "sparse_low_rank_linear forward and backward", layer
    yield "block_low_rank_linear forward and backward", block_layer


def updates(shape: Projection, inputs: Inputs) -> Iterator[tuple[str, Work]]:
    W, G = inputs.normal(shape.n_out, shape.n_in), inputs.normal(shape.n_out, shape.n_in)
    N, group = inputs.normal(shape.rank, shape.n_in), 64
    P = inputs.orthonormal(shape.n_out, shape.rank)
    R = P.t() @ G
    scaling = inputs.normal(1, shape.n_in).float().abs()
    state = torch.ones((), device=W.device)

    def low_rank() -> list[Tensor]:
        new = W.clone()
        low_rank_update_(new, P, N, LR, SCALE, DECAY, key=KEY)
        return [new]

    def fira(G: Tensor) -> list[Tensor]:
        new = W.clone()
        return [new, fira_update_(new, G, P, R, N, state, LR, 1.0, DECAY, key=KEY)]

    def quant() -> list[Tensor]:
        q = quantize(W, 8, group, KEY)
        return [q.codes, q.scales, q.zeros, dequantize(q, W.dtype)]

    def adam8bit() -> list[Tensor]:
        new, moments = W.clone(), Adam8bitState.zeros_for(W)
        for step in (1, 2):
            adam8bit_(new, G, moments, lr=LR, betas=(0.9, 0.999), eps=1e-8, step=step, key=KEY)
        return [new, moments.exp_avg, moments.exp_avg_sq, moments.exp_avg_absmax, moments.exp_avg_sq_absmax]

    def scaled() -> list[Tensor]:
        new, limiter = W.clone(), state.clone()
        limited = limit_growth_(limiter, G, scaling)
        scaled_update_(new, G, limited, LR, DECAY, key=KEY)
        return [new, limiter, limited]

    yield "low_rank_update_, stochastic", low_rank
    yield "fira_update_", lambda: fira(G)
    yield "fira_update_, residual formed", lambda: fira(P @ R)
    yield "quantize and dequantize", quant
    yield "adam8bit_", adam8bit
    yield "limit_growth_ and scaled_update_", scaled


def count_different(work: Work, repeats: int) -> int:
    """How many of `repeats` further results differ from the first in any bit, NaN included."""
    first = [_bits(tensor) for tensor in work()]
    different = 0
    for _ in range(repeats):
        different += not all(torch.equal(a, _bits(b)) for a, b in zip(first, work(), strict=True))
    return different


def _bits(tensor: Tensor) -> Tensor:
    """Integers, which are equal only bit for bit: 0.0 and -0.0 differ, a NaN equals itself."""
    return tensor.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--tiny", action="store_true", help="on one small matrix")
    args = parser.parse_args()
    different = {}
    for shape in [TINY] if args.tiny else [LLAMA_60M[1], LLAMA_350M[1]]:
        for name, work in works(shape, Inputs(torch.device(args.device), torch.bfloat16)):
            different[name] = count_different(work, args.repeats)
    print(json.dumps(different))


if __name__ == "__main__":
    main()
