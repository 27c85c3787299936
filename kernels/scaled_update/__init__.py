"""W minus a gradient whose rows or columns are scaled, and the limiter of its growth (arXiv 2412.05270)."""

from kernels.scaled_update.op import limit_growth_, scaled_update_

__all__ = ["limit_growth_", "scaled_update_"]
