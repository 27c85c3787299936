"""Output head and cross-entropy in one operation that never holds the logits of all tokens."""

from kernels.linear_cross_entropy.in_torch import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
