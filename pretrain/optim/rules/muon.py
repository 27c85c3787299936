"""Muon: momentum of whole matrices, orthogonalised (kellerjordan.github.io/posts/muon, arXiv 2502.16982)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kernels.scaled_update import scaled_update_
from pretrain.optim.config import OF_BASES, OF_SUMS, Beta, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.rules.base import Rule, State, Step, WeightUpdate
from pretrain.optim.signs import signed

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: the steepest at 0 that still ends near 1."""

SMALLEST_NORM = 1e-7


class Muon(Rule):
    """B <- mu B + (1 - mu) G; W <- (1 - lr decay) W - lr' NS(mu B + (1 - mu) G), or NS(B) without Nesterov."""

    class Config(MatrixConfig):
        """torch.optim.Muon for the targets, AdamW for the rest, with one learning rate.

        Defaults are torch's, but for `adjust_lr_fn`: match_rms_adamw lets one rate serve both (arXiv 2502.16982).
        `betas`, `eps` and `moments` are AdamW's alone; the momentum is fp32.
        """

        ignored = (
            OF_SUMS | OF_BASES | {"rank", "ranks", "update_proj_gap", "scale", "proj_type", "rotate_moments", "grams"}
        )
        decay_after = False
        name: Literal["muon"] = "muon"
        lr: float = Field(1e-3, gt=0)
        eps: float = Field(1e-8, gt=0)
        eps_mode: Literal["galore", "torch"] = "torch"
        weight_decay: float = Field(0.1, ge=0)
        momentum: Beta = 0.95
        nesterov: bool = True
        ns_steps: int = Field(5, ge=1, lt=100)
        """Iterations of Newton-Schulz."""
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
        """original: lr sqrt(max(1, rows / cols)). match_rms_adamw: 0.2 lr sqrt(max(rows, cols)), for AdamW's RMS."""

    needs = "full"
    uses_basis = False
    keeps_moments = False
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return {"momentum_buffer": torch.zeros(matrix.shape, device=device)}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"N": matrix.shape}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        gradient, momentum = matrix.left_form(gradient), self.config.momentum
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        N = orthogonalise(gradient.lerp(buffer, momentum) if self.config.nesterov else buffer, self.config.ns_steps)
        return {"N": signed(self.config, N, gradient)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        step, scaling = update.step, torch.full((1, 1), self.ratio(*update.matrix.shape), device=weight.device)
        scaled_update_(weight, update.message["N"], scaling, step.lr, self.config.weight_decay, key=step.key)

    def ratio(self, rows: int, cols: int) -> float:
        """Factor of the message in a weight's step."""
        original = self.config.adjust_lr_fn == "original"
        return max(1, rows / cols) ** 0.5 if original else 0.2 * max(rows, cols) ** 0.5


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """About U V^T of `matrix` = U S V^T (rows, cols), singular values from 0.7 to 1.2, in bf16 as torch.optim.Muon."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    X = matrix.bfloat16() if wide else matrix.bfloat16().t()
    X = X / X.norm().clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        A = X @ X.t()
        X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X if wide else X.t()).contiguous()
