from shapes import meta, projections

from kernels.low_rank_update.in_triton import launch_low_rank_update

DOTS = {"low_rank_update_kernel"}


def launch_all():
    hyper = meta(3, dtype="float32")
    for n_out, n_in, rank, _ in projections():
        P, N, W = meta(n_out, rank), meta(rank, n_in), meta(n_out, n_in)
        launch_low_rank_update(meta(n_out, n_in, dtype="float32"), P, N, hyper, None, False)
        launch_low_rank_update(W, P, N, hyper, 1, False)
