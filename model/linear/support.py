"""The support of a sparse matrix: which of its entries exist."""

import torch
from torch import Tensor

from model.seeding import generator


def support_size(density: float, in_features: int, out_features: int) -> int:
    """Entries of the support of an (out_features, in_features) matrix."""
    return int(density * out_features * in_features)


def draw_support(size: int, numel: int, seed: int, name: str) -> Tensor:
    """`size` of `numel` flat positions, sorted int32, every subset equally likely; from (seed, name) alone.

    Draws with replacement, in each round as many as are missing, so that the support is never overfull: by symmetry the
    result is a uniform subset. A permutation of a 7B model's matrix (45 million entries) would take seconds.
    """
    assert 0 <= size <= numel < 2**31
    drawn = min(size, numel - size)  # above one half, draw the complement
    random = generator(seed, "support", name)
    chosen = torch.zeros(numel, dtype=torch.bool)
    missing = drawn
    while missing:
        chosen.index_fill_(0, torch.randint(numel, (missing,), generator=random), True)
        missing = drawn - int(chosen.count_nonzero())
    if drawn != size:
        chosen.logical_not_()
    return chosen.nonzero().flatten().to(torch.int32)
