"""The dense matrix of a sparse-plus-low-rank one: W = scale B A + S (arXiv 2406.02214, section 3)."""

from kernels.decompress.op import decompress

__all__ = ["decompress"]
