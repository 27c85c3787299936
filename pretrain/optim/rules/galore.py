"""GaLore (arXiv 2403.03507, algorithm 2): Adam on the projected gradient, projected back. And its variants."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from pretrain.optim.config import OF_WHOLES, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import direction
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, WeightUpdate, apply_low_rank


class GaLore(ProjectedAdam):
    """W <- W - lr c scale P N with (N, c) Adam's direction of R = P^T G, then decoupled decay."""

    class Config(MatrixConfig):
        """GaLore (arXiv 2403.03507) with AdamW; the defaults are the paper's for 60M parameters."""

        ignored = OF_WHOLES
        name: Literal["galore_adamw"] = "galore_adamw"

    needs = "projected"

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"N": (matrix.rank, matrix.n)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        N, correction = direction(self.config, state, gradient, step.number, matrix.name)
        return {"N": N.mul_(correction)}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        apply_low_rank(weight, update.P, update.message["N"], self.config, update)


class GaLore8bit(GaLore):
    """GaLore with moments in codes."""

    class Config(GaLore.Config):
        """GaLore with 8-bit moments."""

        name: Literal["galore_adamw8bit"] = "galore_adamw8bit"  # type: ignore[assignment]
        moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "8bit"


class GaLoreAdafactor(GaLore):
    """GaLore with a factored second moment."""

    class Config(GaLore.Config):
        """GaLore with Adafactor's factored second moment and no first one."""

        name: Literal["galore_adafactor"] = "galore_adafactor"  # type: ignore[assignment]
        moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "adafactor"


class GoLore(GaLore):
    """GaLore whose bases are random late in training, when gradients are mostly noise."""

    class Config(GaLore.Config):
        """GoLore (arXiv 2410.11289); the defaults are the released ones."""

        name: Literal["golore"] = "golore"  # type: ignore[assignment]
        lr: float = Field(1e-3, gt=0)
        scale: float = Field(1.0, gt=0)
        random_fraction: float = Field(0.2, ge=0, le=1)
        """Share of schedule.total_steps, the last of the run, in which new bases are uniformly random, also where it
        grows in stages; until then `projector` finds them."""


class Sara(GaLore):
    """GaLore whose bases are drawn at random from the singular vectors."""

    class Config(GaLore.Config):
        """SARA on GaLore (arXiv 2502.05790), which leaves no direction out for good; the defaults are GaLore's."""

        name: Literal["sara"] = "sara"  # type: ignore[assignment]
        projector: str = "sampled_svd"


class QGaLore(GaLore):
    """GaLore with weights, bases and moments in codes, and lazier refreshes."""

    class Config(GaLore.Config):
        """Q-GaLore (arXiv 2407.08296); the defaults are the paper's for 60M parameters."""

        name: Literal["q_galore"] = "q_galore"  # type: ignore[assignment]
        lr: float = Field(0.015, gt=0)
        eps: float = Field(1e-8, gt=0)
        eps_mode: Literal["galore", "torch"] = "torch"
        moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "8bit"
        weights: Literal["fp32_master", "bf16", "bf16_stochastic", "int8"] = "int8"
        projection: Literal["fp32", "bf16", "int8", "int4"] = "int4"
        refresh: Literal["fixed", "adaptive"] = "adaptive"
