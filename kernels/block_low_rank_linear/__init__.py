"""The block-sparse-plus-low-rank linear: y = x W^T with W = scale B A + S, where S consists of balanced random blocks.

It is not SLTrain, whose S is sparse element by element: here the products are factored, and W never exists.
"""

from kernels.block_low_rank_linear.op import block_low_rank_linear

__all__ = ["block_low_rank_linear"]
