"""Adam whose moments take one byte each (8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861)."""

from kernels.adam8bit.op import adam8bit_, adam8bit_direction
from kernels.adam8bit.state import Adam8bitState

__all__ = ["Adam8bitState", "adam8bit_", "adam8bit_direction"]
