"""The definition of the low-rank weight update."""

from torch import Tensor


def low_rank_update(
    W: Tensor,
    P: Tensor,
    N: Tensor,
    lr: float | Tensor,
    scale: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    decay_after: bool = False,
) -> Tensor:
    """(1 - lr weight_decay) W - lr scale P N; with `decay_after`, (1 - lr weight_decay) (W - lr scale P N).

    W (rows, cols), P (rows, rank), N (rank, cols), in one dtype.
    """
    decay = 1 - lr * weight_decay
    update = lr * scale * (P @ N)
    return decay * (W - update) if decay_after else decay * W - update
