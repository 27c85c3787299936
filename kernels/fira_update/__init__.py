"""The weight update of Fira: a low-rank step and a scaled residual of the gradient (arXiv 2410.01623)."""

from kernels.fira_update.op import fira_update_

__all__ = ["fira_update_"]
