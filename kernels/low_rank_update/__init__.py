"""The weight update of GaLore's family: a projected step back in full size, in one pass (arXiv 2403.03507)."""

from kernels.low_rank_update.op import low_rank_update_

__all__ = ["low_rank_update_"]
