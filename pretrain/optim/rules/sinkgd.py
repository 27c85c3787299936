"""SinkGD (arXiv 2502.06742): gradients whose rows and columns are normalised in turn."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.scaled_update import scaled_update_
from pretrain.optim.config import OF_BASES, OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.rules.base import Rule, State, Step, WeightUpdate

SMALLEST, LARGEST = 1e-30, torch.finfo(torch.float32).max
"""SMALLEST: of squared norms, beside a largest entry of 1, that count as more than 0."""


class SinkGD(Rule):
    """W <- (1 - lr' decay) W - lr' G', lr' = lr scale; G' is G after `sinkhorn_steps` of row, then column norms.

    (Algorithms 3 and 4.) What they make of G is diag(rows) G diag(cols), so the owner sends these two vectors, and
    every rank, which has G, applies them.
    """

    class Config(MatrixConfig):
        """SinkGD (arXiv 2502.06742) for the targets, AdamW with `lr` for the rest; the defaults are the paper's."""

        ignored = (
            OF_SUMS
            | OF_BASES
            | {"rank", "ranks", "update_proj_gap", "proj_type", "rotate_moments", "cautious", "grams"}
        )
        decay_after = False
        name: Literal["sinkgd"] = "sinkgd"
        lr: float = Field(0.02, gt=0)
        eps: float = Field(1e-8, gt=0)
        eps_mode: Literal["galore", "torch"] = "torch"
        scale: float = Field(0.05, gt=0)
        """Learning rate of the targets over AdamW's."""
        sinkhorn_steps: int = Field(5, ge=1, lt=100)
        """Times that rows, then columns are normalised."""

    needs = "full"
    gradient_everywhere = True
    uses_basis = False
    keeps_moments = False
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return {}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"rows": (matrix.shape[0], 1), "cols": (1, matrix.shape[1])}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        rows, cols = multi_normalise(matrix.left_form(gradient), self.config.sinkhorn_steps)
        return {"rows": rows, "cols": cols}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        config, step = self.config, update.step
        # In place: the gradient is this step's own, and a second matrix would be the most that the step takes.
        G = update.matrix.left_form(update.G).mul_(update.message["cols"]).contiguous()
        scaled_update_(weight, G, update.message["rows"], step.lr * config.scale, config.weight_decay, key=step.key)


def multi_normalise(G: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """rows (m, 1) and cols (1, n), so that rows G cols is G (m, n) after `steps` of: its rows to norm sqrt(n), then its
    columns to norm sqrt(m) (arXiv 2502.06742, algorithm 3). 0 for a row or column of zeros; finite for any finite G.

    A row's norm is the root of (G o G) cols^2, so that is Sinkhorn's iteration on the squares: products with vectors,
    where the algorithm as written makes 2 `steps` matrices.
    """
    m, n = G.shape
    least, most = G.aminmax()
    largest = torch.maximum(-least, most).clamp(min=SMALLEST)
    square = (G / largest).square_()  # largest 1: no sum overflows, and those of a tiny gradient are as any other's
    rows, cols = square.new_ones(m), square.new_ones(n)
    for _ in range(steps):
        rows = _over(n, square @ cols)
        cols = _over(m, square.t() @ rows)
    return rows.sqrt_()[:, None], cols.sqrt_().div_(largest).clamp_(max=LARGEST)[None]


def _over(wanted: int, square: Tensor) -> Tensor:
    """What makes squared norms `wanted`; 0 where there is none."""
    return (wanted / square.clamp(min=SMALLEST)).mul_(square > SMALLEST)
