"""GradNormLoRP (arXiv 2412.19616): weight normalisation, its direction trained by GaLore."""

from typing import Literal

import torch
from torch import Tensor

from kernels.rounding import round_to
from pretrain.optim.config import OF_SUMS, MatrixConfig
from pretrain.optim.matrix import Matrix
from pretrain.optim.moments import direction
from pretrain.optim.rules.adam import ProjectedAdam
from pretrain.optim.rules.base import State, Step, WeightUpdate, project


class GradNormLoRP(ProjectedAdam):
    """W = g v / |v| with norms over each row of the weight; v takes GaLore's step, g Adam's, each then decoupled decay.

    dL/dg = sum over a row of G v^, v^ = v / |v|; dL/dv = g / |v| (G - dL/dg v^) is projected with the optimizer's
    basis, that of G itself. v is not stored: it is W |v| / g, and the owner keeps g and |v| of each row with Adam's
    moments of g, four numbers per row. In terms of the weight a step is W <- keep W - move (P N), and the message N
    with the two numbers `keep` and `move` per row; the owner multiplies P N once more, for the new |v|. A row of zeros
    has no direction: its first step is GaLore's.
    """

    class Config(MatrixConfig):
        """GradNormLoRP (arXiv 2412.19616); the defaults are the released script's for pretraining."""

        ignored = OF_SUMS
        name: Literal["gradnormlorp"] = "gradnormlorp"
        magnitude: Literal["exact", "upstream"] = "exact"
        """exact: weight normalisation. upstream: as released, where magnitudes are reset to |v| before each step, so
        that what they learn lasts one step, and the gradient of v is that of the weight."""

    needs = "full"
    config: Config

    def __init__(self, config: MatrixConfig):
        super().__init__(config)
        self.of_magnitude = config.model_copy(update={"moments": "fp32", "cautious": False, "grams": False})

    def init_state(self, matrix: Matrix, device: torch.device) -> State:
        names = ("g", "norm", "g_exp_avg", "g_exp_avg_sq")
        return super().init_state(matrix, device) | {name: torch.zeros(_rows(matrix), device=device) for name in names}

    def message_shapes(self, matrix: Matrix) -> dict[str, tuple[int, ...]]:
        return {"N": (matrix.rank, matrix.n), "keep": _rows(matrix), "move": _rows(matrix)}

    def direct(self, matrix: Matrix, state: State, P: Tensor | None, gradient: Tensor, step: Step) -> State:
        assert P is not None
        axis, exact = _axis(matrix), self.config.magnitude == "exact"
        W = matrix.left_form(step.weight()).float()
        length = W.norm(dim=axis, keepdim=True)
        gone = length == 0
        g, norm = (length, length) if step.number == 1 else (state["g"], state["norm"])
        inverse = g.sign() / torch.where(gone, 1.0, length)
        unit = W * inverse  # v / |v|
        slope = (gradient * unit).sum(axis, keepdim=True)
        if exact:
            of_v = torch.where(gone, 1.0, g / norm) * (gradient - unit * slope)
        else:
            g, of_v = norm, gradient
        N, correction = direction(self.config, state, project(P, of_v, step.products), step.number, matrix.name)
        moments = {name: state[f"g_{name}"] for name in ("exp_avg", "exp_avg_sq")}
        N_g, correction_g = direction(self.of_magnitude, moments, slope, step.number, matrix.name)

        decay = 1 - step.lr * self.config.weight_decay
        size = decay * step.lr * self.config.scale * correction
        new_norm = torch.addcmul(-size * back(P, N, step.products), unit, decay * norm).norm(dim=axis, keepdim=True)
        new_g = torch.where(gone, new_norm, decay * (g - step.lr * correction_g * N_g))
        ratio = new_g / torch.where(new_norm == 0, 1.0, new_norm)
        keep, move = ratio * decay * norm * inverse, ratio * size
        state["g"].copy_(new_g)
        state["norm"].copy_(new_norm)
        return {"N": N, "keep": keep, "move": move}

    def apply(self, weight: Tensor, update: WeightUpdate) -> None:
        matrix, message, step = update.matrix, update.message, update.step
        moved = message["move"] * back(update.P, message["N"], step.products)
        new = message["keep"] * matrix.left_form(weight) - moved
        weight.copy_(round_to(matrix.left_form(new), weight.dtype, step.key))


def back(P: Tensor, N: Tensor, products: torch.dtype) -> Tensor:
    """P N (m, n), multiplied in `products`, as fp32."""
    return (P.to(products) @ N.to(products)).float()


def _axis(matrix: Matrix) -> int:
    """The axis of left form that runs along a row of the weight."""
    return 1 if matrix.side == "left" else 0


def _rows(matrix: Matrix) -> tuple[int, int]:
    """The shape of one number per row of the weight, in left form."""
    return (matrix.m, 1) if matrix.side == "left" else (1, matrix.n)
