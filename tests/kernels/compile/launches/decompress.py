from shapes import meta, projections

from kernels.decompress.in_triton import launch_decompress, launch_scatter
from kernels.support import TileSupport, count_tiles

DOTS = {"decompress_kernel"}


def launch_all():
    for n_out, n_in, rank, density in projections():
        nnz = int(density * n_out * n_in)
        shape = (n_out, n_in)
        support = TileSupport(meta(nnz, dtype="uint16"), meta(count_tiles(shape) + 1, dtype="int32"), shape)
        W, values = meta(n_out, n_in), meta(nnz)
        launch_decompress(meta(rank, n_in), meta(n_out, rank), values, support, 0.25, W)
        launch_scatter(W, values, support)
    for n_out, n_in in ((1376, 512), (5461, 2048)):
        support = TileSupport(support.loc, meta(count_tiles((n_out, n_in)) + 1, dtype="int32"), (n_out, n_in))
        factors = meta(128, n_in, dtype="float32"), meta(n_out, 128, dtype="float32")
        W, values = meta(n_out, n_in, dtype="float32"), meta(support.nnz, dtype="float32")
        launch_decompress(*factors, values, support, 0.25, W)
