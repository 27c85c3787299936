from shapes import meta, projections

from kernels.fira_update.in_triton import launch_fira_update

DOTS = {"fira_residual_kernel", "fira_update_kernel"}


def launch_all():
    hyper, previous = meta(3, dtype="float32"), meta(dtype="float32")
    for rows, cols, rank, _ in projections():
        W, G, P, R = meta(rows, cols), meta(rows, cols), meta(rows, rank), meta(rank, cols)
        launch_fira_update(W, G, P, R, R, previous, hyper, "left", 1, False)
        P, R = meta(rank, cols), meta(rows, rank)
        launch_fira_update(W, G, P, R, R, previous, hyper, "right", 1, False)
    launch_fira_update(meta(rows, cols, dtype="float32"), G, P, R, R, previous, hyper, "right", None, False)
