"""When a matrix gets a new basis."""

import functools
import math

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
    place = index * _stride(count) % count
    first = place * min(gap, FIRST_STEPS) // count
    offset = place * gap // count
    return step == first or (step >= gap and step % gap == offset)


@functools.cache
def _stride(count: int) -> int:
    """Neighbours are of one kind (three wide matrices of a feed-forward in a row), so they are put far apart: by the
    golden section, or the next number that reaches every place.
    """
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) > 1:
        stride += 1
    return stride
