"""The SLTrain linear: y = x W^T with W = scale B A + S, where S has a fixed random support (arXiv 2406.02214)."""

from kernels.sparse_low_rank_linear.choice import Choice, StepCache
from kernels.sparse_low_rank_linear.op import sparse_low_rank_linear

__all__ = ["Choice", "StepCache", "sparse_low_rank_linear"]
