from shapes import meta, projections

from kernels.scaled_update.in_triton import launch_limit_growth, launch_scaled_update

DOTS: set[str] = set()


def launch_all():
    hyper, state = meta(3, dtype="float32"), meta(dtype="float32")
    for rows, cols, _, _ in projections():
        W, G = meta(rows, cols), meta(rows, cols, dtype="float32")
        for by in ((1, cols), (rows, 1), (1, 1)):
            scaling = launch_limit_growth(state, G, meta(*by, dtype="float32"))
            launch_scaled_update(W, G, scaling, hyper, 1, True)
    launch_scaled_update(meta(rows, cols, dtype="float32"), W, scaling, hyper, None, False)
