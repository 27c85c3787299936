"""When a matrix gets a new basis."""

import functools
import math

import torch
from torch import Tensor

from pretrain.optim.config import MatrixConfig

FIRST_STEPS = 20
"""Random first bases are replaced within so many steps."""

QUEUE = 5
"""Overlaps whose mean decides whether an adaptive gap doubles."""


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


class AdaptiveGap:
    """When one matrix gets new bases, if those so far decide it (Q-GaLore, arXiv 2407.08296, section 3.3).

    Begins as `is_due` does. At each refresh after the first, the overlap of the old basis and the new one joins a queue
    of 5; when that is full and its mean reaches `refresh_threshold`, the gap doubles, up to `max_proj_gap`, and the
    queue begins anew. (The release keeps the queue, and so doubles at every refresh from then on, without bound.)
    """

    def __init__(self, config: MatrixConfig, index: int, count: int):
        gap = config.update_proj_gap
        place = index * _stride(count) % count if config.refresh_stagger else 0
        self.gap, self.refreshes = gap, 0
        self.wait = place * min(gap, FIRST_STEPS) // count
        """Updates until the next refresh."""
        self.overlaps: list[float] = []
        self._second = gap + place * gap // count - self.wait
        self._largest, self._threshold = config.max_proj_gap or 16 * gap, config.refresh_threshold

    def refreshed(self, overlap: float) -> None:
        """There is a new basis, and this is its overlap with the old one."""
        self.refreshes += 1
        if self.refreshes == 1:
            self.wait = self._second
            return
        self.overlaps = [*self.overlaps, overlap][-QUEUE:]
        if len(self.overlaps) == QUEUE and sum(self.overlaps) / QUEUE >= self._threshold:
            self.gap, self.overlaps = min(2 * self.gap, self._largest), []
        self.wait = self.gap

    def tick(self) -> None:
        """An update was applied. A refresh that found no basis is tried again at the next one."""
        self.wait = max(0, self.wait - 1)

    def tensor(self) -> Tensor:
        """What a checkpoint holds (9, fp64): refreshes, gap, wait, length of the queue, and the queue."""
        numbers = [self.refreshes, self.gap, self.wait, len(self.overlaps), *self.overlaps]
        return torch.tensor([*numbers, *[0.0] * (QUEUE - len(self.overlaps))], dtype=torch.float64)

    def load(self, stored: Tensor) -> None:
        """Put `tensor` back."""
        numbers = stored.tolist()
        self.refreshes, self.gap, self.wait, length = (int(number) for number in numbers[:4])
        self.overlaps = numbers[4 : 4 + length]


def overlap_of(config: MatrixConfig, old: Tensor, new: Tensor) -> Tensor:
    """How alike the bases old and new (m, rank) are, 0-d: 1 for equal ones, rank / m on average for random ones.

    first_vector is the release's measure; columns keep their sides here (`align_signs`), so that it is not negative.
    """
    if config.refresh_overlap == "first_vector":
        return torch.cosine_similarity(old[:, 0], new[:, 0], dim=0)
    return subspace_overlap(old, new)


def subspace_overlap(old: Tensor, new: Tensor) -> Tensor:
    """Return ||old^T new||_F^2 / rank of two orthonormal bases (m, rank), 0-d: how much of the subspace has stayed."""
    return (old.t() @ new).square().sum() / new.shape[1]
