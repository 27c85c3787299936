"""Moments carried from one basis into the next."""

from torch import Tensor

from model.seeding import derive_seed
from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.moments import State, load, store


def rotate_moments(config: MatrixConfig, state: State, old: Tensor, new: Tensor, name: str, step: int) -> None:
    """Moments of old^T G become ones of new^T G, in place; old and new (m, rank) fp32 with orthonormal columns.

    With C = new^T old, exp_avg becomes C exp_avg, and the second moment follows LDAdam (arXiv 2410.16103, section 3.1):
    the variance exp_avg_sq - exp_avg^2, corrected for bias, turns by C o C and the new mean's square joins it. Where C
    has no energy, both are 0: a new direction starts as at step 1, without its bias correction. Adafactor has no mean:
    its row factor turns by C o C.

    `name`, the matrix's, and the number of the step seed the rounding of bf16 moments: with the same numbers at each
    step every element would err to its own side for ever.
    """
    C = new.t() @ old
    if config.moments == "adafactor":
        state["exp_avg_sq_row"].copy_(C.square() @ state["exp_avg_sq_row"])
        return
    beta1, beta2 = config.betas
    count = state["count"].clamp(min=1)  # before the first step the moments are 0 and stay so
    unbias1, unbias2 = 1 - beta1**count, 1 - beta2**count
    exp_avg, exp_avg_sq = load(config, state)
    mean = exp_avg / unbias1
    variance = exp_avg_sq / unbias2 - mean.square()
    turned = C @ mean
    seed = derive_seed(step, "rotation", name)  # others than those of the step that follows
    store(config, state, turned * unbias1, (C.square() @ variance + turned.square()).abs() * unbias2, seed)
