from shapes import meta, projections

from kernels.decompress.kernel import launch_decompress, launch_scatter
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
