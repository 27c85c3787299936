"""What the ranks of a sharded optimizer tell each other: in a fixed order, in buckets, and only what is needed."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 64 * 1024**2
"""Size of one message; small tensors travel together."""

Owned = tuple[int, Tensor]
"""(owner's rank, tensor)."""


class Exchange:
    """Collectives over `size` ranks. All ranks call the same methods with tensors of equal shapes in equal order.

    With one rank nothing is sent and nothing is counted. Gradients come as autograd leaves them, projected
    ones in fp32, and travel as `wire`, the dtype of the parameters: in bf16 they have no more digits to lose than bf16
    gradients have.
    """

    def __init__(self, rank: int, size: int, wire: torch.dtype = torch.float32):
        self.rank, self.size, self.wire = rank, size, wire
        self.reduced_bytes = 0
        """Handed to `sum_to_owners` (where it counts) and `sum_everywhere` since the last `reset`."""

    def reset(self) -> None:
        self.reduced_bytes = 0

    def sum_to_owners(self, tensors: Iterable[Owned], *, count: bool = True) -> None:
        """Each tensor on its owner becomes the mean over all ranks; elsewhere its contents are lost."""
        for owner, bucket, flat in self._buckets(tensors, self.wire):
            self.reduced_bytes += flat.nbytes if count else 0
            self._reduce(flat, owner)
            if owner == self.rank:
                self._unpack_mean(flat, bucket)

    def sum_everywhere(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes the mean over all ranks, on all of them."""
        for _, bucket, flat in self._buckets(((0, tensor) for tensor in tensors), self.wire):
            self.reduced_bytes += flat.nbytes
            self._sum(flat)
            self._unpack_mean(flat, bucket)

    def send(self, tensors: Iterable[Owned]) -> None:
        """Each tensor gets its owner's contents on every rank."""
        for owner, bucket, flat in self._buckets(tensors):
            self._broadcast(flat, owner)
            if owner != self.rank:
                _unpack(flat, bucket)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks."""
        if self.size > 1:
            self._sum(value)
        return value

    def _reduce(self, flat: Tensor, owner: int) -> None:
        dist.reduce(flat, dst=owner)

    def _sum(self, flat: Tensor) -> None:
        dist.all_reduce(flat)

    def _broadcast(self, flat: Tensor, owner: int) -> None:
        dist.broadcast(flat, src=owner)

    def _unpack_mean(self, flat: Tensor, bucket: list[Tensor]) -> None:
        _unpack(flat, bucket)
        torch._foreach_div_(bucket, self.size)

    def _buckets(
        self, tensors: Iterable[Owned], wire: torch.dtype | None = None
    ) -> Iterator[tuple[int, list[Tensor], Tensor]]:
        """(owner, tensors, their contents in one tensor, as `wire`) of up to BUCKET_BYTES with one owner and dtype."""
        if self.size == 1:
            return
        groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for owner, tensor in tensors:
            group = groups.setdefault((owner, tensor.dtype), [])
            if group and sum(t.nbytes for t in group) + tensor.nbytes > BUCKET_BYTES:
                yield owner, group, _pack(group, wire)
                group = groups[owner, tensor.dtype] = []
            group.append(tensor)
        for (owner, _), group in groups.items():
            yield owner, group, _pack(group, wire)


def _pack(tensors: list[Tensor], dtype: torch.dtype | None) -> Tensor:
    return torch.cat([tensor.to(dtype or tensor.dtype).reshape(-1) for tensor in tensors])


def _unpack(flat: Tensor, tensors: list[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def share_out(costs: list[float], size: int) -> list[int]:
    """An owner in 0 ... size - 1 for each cost: the most expensive first, to whoever has the least (LPT)."""
    load, owners = [0.0] * size, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = min(range(size), key=load.__getitem__)
        load[owners[index]] += costs[index]
    return owners
