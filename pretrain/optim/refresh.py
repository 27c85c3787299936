"""When a matrix gets a new basis."""

from pretrain.optim.matrix_config import MatrixConfig

FIRST_STEPS = 20
"""Random first bases are replaced within so many steps."""


def is_due(config: MatrixConfig, index: int, count: int, step: int) -> bool:
    """Whether matrix `index` of `count` is refreshed at `step` (applied updates so far: 0, 1, ...).

    Staggered, so that no step carries all of the work: once spread over the first min(gap, 20) steps, then every
    update_proj_gap steps, spread over the gap. Not staggered: all at steps 0, gap, 2 gap, ..., as published.
    """
    gap = config.update_proj_gap
    if not config.refresh_stagger:
        return step % gap == 0
    first = index * min(gap, FIRST_STEPS) // count
    offset = index * gap // count
    return step == first or (step >= gap and step % gap == offset)
