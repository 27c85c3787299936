"""What products in eight bits do to a trained model's gradient: how far it is from the exact one, and whether an error
averages out over micro-batches.

    PYTHONPATH=. python tests/gradient_errors.py RUN [MICRO-BATCHES]

Prints, for every kind of products, |found - exact| / |exact| and, in brackets, <found, exact> / <exact, exact>, of the
sums over the first 1, 4, 16 ... micro-batches, with all parameters of the linears in one vector. The exact gradient is
in fp32; "dW alone" multiplies W's gradient in eight bits and all else in fp32.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kernels.code_product import product
from kernels.eight_bit_linear import EightBit, adjacent
from kernels.row_codes import RowCodes, quantize_rows
from model.linear.base import BaseLinear
from pretrain.checkpoint.read import Checkpoint, load_model, open_checkpoint
from pretrain.data.open import Dataset, open_dataset

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Nearest(EightBit):
    """All codes to nearest, as they would be without the two exceptions of `kernels.eight_bit_linear`."""

    def codes(self, W: Tensor, small_beside_large: bool = False) -> RowCodes:
        return quantize_rows(adjacent(W), self.format)

    def _weight_gradient(self, g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        left, right = (quantize_rows(factor.t().contiguous(), self.format) for factor in (g, x))
        return product(left, right, dtype)


@dataclass(frozen=True)
class WeightGradientAlone(EightBit):
    """W's gradient in eight bits; the other products exact. What it passes on as codes is W."""

    rounding: Literal["stochastic", "nearest"] = "stochastic"

    def codes(self, W: Tensor, small_beside_large: bool = False) -> RowCodes:
        return RowCodes(W, W.new_ones(1), W.shape[1])

    def forward(self, x: Tensor, W: RowCodes) -> Tensor:
        return x @ W.codes.t()

    def input_gradient(self, g: Tensor, W: RowCodes) -> Tensor:
        return g @ W.codes

    def _weight_gradient(self, g: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        kind = EightBit if self.rounding == "stochastic" else Nearest
        return kind(self.format)._weight_gradient(g, x, dtype)


KINDS: dict[str, EightBit | None] = {
    "bf16": None,
    "int8": EightBit("int8"),
    "int8, W to nearest": Nearest("int8"),
    "int8, dW too": EightBit("int8", True),
    "fp8": EightBit("fp8"),
    "fp8, dW too": EightBit("fp8", True),
    "int8 dW alone": WeightGradientAlone("int8", True),
    "int8 dW alone, to nearest": WeightGradientAlone("int8", True, "nearest"),
    "fp8 dW alone": WeightGradientAlone("fp8", True),
}


def gradients(checkpoint: Checkpoint, dataset: Dataset, batches: int, how: EightBit | None, dtype: torch.dtype):
    """Gradients (all parameters of linears,) summed over the first 1, 4, 16 ... of so many micro-batches, by count."""
    model = load_model(checkpoint, CPU, dtype).train()
    linears = [module for module in model.modules() if isinstance(module, BaseLinear)]
    for linear in linears:
        linear.eight_bit = how
    found, size = {}, checkpoint.config.train.micro_batch_size
    for turn in range(batches):
        batch = dataset.batch(turn * (dataset.n_samples - size) // batches, size)
        model(batch.tokens, batch.targets).backward()
        if turn + 1 in {4**power for power in range(16)}:
            sums = [parameter.grad for linear in linears for parameter in linear.parameters()]
            found[turn + 1] = torch.cat([grad.double().flatten() for grad in sums if grad is not None])
    return found


def main(run: str, batches: int = 64) -> None:
    checkpoint = open_checkpoint(run)
    dataset = open_dataset(checkpoint.config, "train")
    exact = gradients(checkpoint, dataset, batches, None, torch.float32)
    for name, how in KINDS.items():
        dtype = torch.float32 if isinstance(how, WeightGradientAlone) else torch.bfloat16
        found = gradients(checkpoint, dataset, batches, how, dtype)
        line = []
        for count, gradient in found.items():
            error = (gradient - exact[count]).norm() / exact[count].norm()
            line.append(f"{count}: {error:.4f} ({gradient @ exact[count] / exact[count].square().sum():.4f})")
        print(f"{name:28}{'   '.join(line)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
