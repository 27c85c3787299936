"""GaLore (arXiv 2403.03507, algorithm 2): Adam on the projected gradient, projected back."""

from typing import Literal

from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.moments import direction
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, apply_low_rank


class GaLoreAdamW(MatrixConfig):
    """GaLore (arXiv 2403.03507) with AdamW; the defaults are the paper's for 60M parameters."""

    rule = "galore"
    name: Literal["galore_adamw"] = "galore_adamw"


class GaLoreAdamW8bit(MatrixConfig):
    """GaLore with 8-bit moments."""

    rule = "galore"
    name: Literal["galore_adamw8bit"] = "galore_adamw8bit"
    moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "8bit"


class GaLoreAdafactor(MatrixConfig):
    """GaLore with Adafactor's factored second moment and no first one."""

    rule = "galore"
    name: Literal["galore_adafactor"] = "galore_adafactor"
    moments: Literal["fp32", "bf16", "8bit", "adafactor"] = "adafactor"


class GaLore(ProjectedAdam):
    """W <- W - lr c scale P N with (N, c) Adam's direction of R = P^T G, then decoupled decay."""

    needs = "projected"

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"N": (matrix.rank, matrix.n)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        N, correction = direction(self.config, state, gradient, step.number, matrix.name)
        return {"N": N.mul_(correction)}

    def apply(
        self,
        matrix: Matrix,
        weight: Tensor,
        shared: State,
        P: Tensor | None,
        gradient: Tensor | None,
        message: State,
        step: Step,
    ) -> None:
        assert P is not None
        apply_low_rank(matrix, weight, P, message["N"], self.config, step)
