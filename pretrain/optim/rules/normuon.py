"""NorMuon (arXiv 2510.05491): Muon whose rows are brought to one size by a second moment of each."""

from typing import Literal

import torch
from torch import Tensor

from pretrain.optim.config import Beta
from pretrain.optim.matrix import Matrix
from pretrain.optim.momentum import advance_momentum, init_momentum
from pretrain.optim.rules.base import State, Step
from pretrain.optim.rules.muon import Muon, orthogonalise
from pretrain.optim.signs import signed

EPS = 1e-10


class NorMuon(Muon):
    """U is Muon's NS(...); v <- beta v + (1 - beta) mean(U^2) by row; the step is U / sqrt(v), at a norm of its own.

    (Algorithm 1; each row is a neuron's.) `adjust_lr_fn` sets that norm: the paper's, or the release's. Nesterov's
    momentum is the release's; the paper has plain momentum.
    """

    class Config(Muon.Config):
        """NorMuon (arXiv 2510.05491) for the targets, AdamW for the rest, with one learning rate, as `muon`."""

        name: Literal["normuon"] = "normuon"  # type: ignore[assignment]
        moments: Literal["fp32", "bf16", "8bit"] = "fp32"
        """How the momentum is kept; with "8bit", AdamW's moments too. The second moments, one to a row, are fp32."""
        neuron_beta: Beta = 0.95
        """Decay rate of the second moments of rows, in [0, 1)."""
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
        """match_rms_adamw: the step's RMS is 0.2 lr, as in the paper. original: U's norm is kept, times
        lr sqrt(max(1, rows / cols)), as in the release."""

    keeps_moments = True
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        momentum = init_momentum(self.config.moments, matrix.shape, device)
        return momentum | {"second_momentum_buffer": torch.zeros(matrix.shape[0], 1, device=device)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        config, gradient = self.config, matrix.left_form(gradient)
        B = advance_momentum(state, gradient, config.momentum)
        U = orthogonalise(gradient.lerp(B, config.momentum) if config.nesterov else B, config.ns_steps).float()
        v = state["second_momentum_buffer"].lerp_(U.square().mean(1, keepdim=True), 1 - config.neuron_beta)
        size = U.norm() if config.adjust_lr_fn == "original" else U.numel() ** 0.5
        N = U.div_(v.sqrt().add_(EPS))
        N.mul_(size / (N.norm() + EPS))
        return {"N": signed(config, N, gradient)}

    def ratio(self, rows: int, cols: int) -> float:
        return super().ratio(rows, cols) if self.config.adjust_lr_fn == "original" else 0.2
