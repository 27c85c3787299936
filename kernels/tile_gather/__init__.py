"""The gradient of sparse values: the dense gradient's entries at the support."""

from kernels.tile_gather.op import tile_gather

__all__ = ["tile_gather"]
