from shapes import meta, projections

from kernels.quant.format import Quantized
from kernels.quant.in_triton import launch_dequantize, launch_quantize

DOTS = set()


def launch_all():
    for n_out, n_in, _, _ in projections():
        for bits in (8, 4):
            q = Quantized.empty((n_out, n_in), bits, 256, meta(1).device)
            for key in (None, 2**31):
                launch_quantize(meta(n_out, n_in), q, key)
            launch_dequantize(q, meta(n_out, n_in))
