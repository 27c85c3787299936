"""Group quantisation along the rows of a matrix to 8 or 4 bits, as Q-GaLore's weights and projectors need it."""

from kernels.quant.format import Quantized
from kernels.quant.op import dequantize, quantize

__all__ = ["Quantized", "dequantize", "quantize"]
