"""Equal inputs give equal bits: every operation that a race could spoil, repeated and compared with its first result.

`python -m kernels.bench.repeat --device cuda --repeats 1000` prints, by name, how many repeats differed.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels.bench.inputs import LLAMA_60M, LLAMA_350M, Inputs, Projection
from kernels.decompress import decompress
from kernels.sparse_low_rank_linear import sparse_low_rank_linear
from kernels.tile_gather import tile_gather

TINY = Projection(96, 64, 8, 0.1)
TOKENS = 512


def works(shape: Projection, inputs: Inputs) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Names and functions that return new tensors of the same bits every time."""
    A, B, values, support = inputs.factors(shape)
    dense = inputs.normal(shape.n_out, shape.n_in)
    x, grad_y = inputs.normal(TOKENS, shape.n_in), inputs.normal(TOKENS, shape.n_out)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, A, B, values)]

    def layer() -> list[Tensor]:
        y = sparse_low_rank_linear(leaves[0], leaves[1], leaves[2], leaves[3], support, shape.scale)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]

    yield f"decompress {shape}", lambda: [decompress(A, B, values, support, shape.scale)]
    yield f"decompress in one kernel {shape}", lambda: [decompress(A, B, values, support, shape.scale, fused=True)]
    yield f"tile_gather {shape}", lambda: [tile_gather(dense, support)]
    yield f"sparse_low_rank_linear forward and backward {shape}", layer


def count_different(work: Callable[[], list[Tensor]], repeats: int) -> int:
    """How many of `repeats` further results differ from the first in any bit, NaN included."""
    first = [_bits(tensor) for tensor in work()]
    different = 0
    for _ in range(repeats):
        different += not all(torch.equal(a, _bits(b)) for a, b in zip(first, work(), strict=True))
    return different


def _bits(tensor: Tensor) -> Tensor:
    """Integers, which are equal only bit for bit: 0.0 and -0.0 differ, a NaN equals itself."""
    return tensor.contiguous().view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)


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
