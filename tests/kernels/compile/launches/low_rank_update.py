from shapes import meta, projections

from kernels.low_rank_update.kernel import launch_low_rank_update, launch_low_rank_update_quantized
from kernels.quant.format import Quantized

DOTS = {"low_rank_update_kernel", "low_rank_update_quantized_kernel"}
DEVICE = meta(1).device


def launch_all():
    hyper = meta(3, dtype="float32")
    for n_out, n_in, rank, _ in projections():
        P, N, W = meta(n_out, rank), meta(rank, n_in), meta(n_out, n_in)
        P4, N4 = Quantized.empty((n_out, rank), 4, 256, DEVICE), Quantized.empty((rank, n_in), 4, 256, DEVICE)
        launch_low_rank_update(meta(n_out, n_in, dtype="float32"), P, N, hyper, None, False)
        for left, right in ((P, N), (P4, N), (P, N4)):
            launch_low_rank_update(W, left, right, hyper, 1, False)
            launch_low_rank_update_quantized(Quantized.empty(W.shape, 8, 256, DEVICE), left, right, hyper, 1, False)
