"""SCALE (arXiv 2506.16659): gradients normalised by row, and momentum in the output head alone."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.scaled_update import scaled_update_
from pretrain.optim.config import OF_BASES, OF_SUMS, Beta, MatrixConfig
from pretrain.optim.element import Element
from pretrain.optim.matrix import Matrix
from pretrain.optim.normalised_part import NormalisedPart, inverse_rms
from pretrain.optim.rules.base import Rule, State, Step, WeightUpdate


class Scale(Rule):
    """W <- (1 - lr' decay) W - lr' G / RMS(G), lr' = lr scale, RMS of each row, over the input dimension; no state.

    The embedding likewise, but each column over the vocabulary; the head by row after momentum, B <- mu B + (1 - mu) G.
    These are the norms of the release, whose paper counts columns of the transposed weight. AdamW with the learning
    rate `lr` is for what is no matrix of the network's: norms, and the factors and values of other linears.
    """

    class Config(MatrixConfig):
        """SCALE (arXiv 2506.16659); the defaults are the paper's from 60M to 350M parameters.

        At 1B its matrices take 2e-4, at 7B 1e-4, its norms 1e-3: scale 0.2 and 0.1.
        """

        ignored = (
            OF_SUMS
            | OF_BASES
            | {"rank", "ranks", "update_proj_gap", "proj_type", "rotate_moments", "embedding_moments"}
            | {"cautious", "grams"}
        )
        decay_after = False
        quantised = ()
        name: Literal["scale"] = "scale"
        lr: float = Field(1e-3, gt=0)
        eps: float = Field(1e-8, gt=0)
        scale: float = Field(1.0, gt=0)
        """Learning rate of the matrices, embedding and head over AdamW's."""
        moments: Literal["fp32", "bf16", "8bit"] = "fp32"
        """How the head's momentum is kept; with "8bit", AdamW's moments too."""
        momentum: Beta = 0.9
        """Decay rate of the head's momentum, in [0, 1); 0 keeps none."""

    needs = "full"
    gradient_everywhere = True
    uses_basis = False
    config: Config

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        return {}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"scaling": (matrix.shape[0], 1)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        return {"scaling": inverse_rms(matrix.left_form(gradient), 1)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        config, G = self.config, update.matrix.left_form(update.G).contiguous()
        rate, key = update.step.lr * config.scale, update.step.key
        scaled_update_(weight, G, update.message["scaling"], rate, config.weight_decay, key=key)

    def element(self, name: str, parameter: nn.Parameter) -> Element:
        if name == "tok_embeddings.weight":
            return NormalisedPart(name, parameter, dim=0)
        if name == "lm_head.weight":
            return NormalisedPart(name, parameter, momentum=self.config.momentum)
        return super().element(name, parameter)
