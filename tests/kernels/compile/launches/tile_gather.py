from shapes import meta, projections

from kernels.decompress.in_triton import launch_tile_gather
from kernels.support import TileSupport, count_tiles

DOTS = set()


def launch_all():
    for n_out, n_in, _, density in projections():
        nnz = int(density * n_out * n_in)
        shape = (n_out, n_in)
        support = TileSupport(meta(nnz, dtype="uint16"), meta(count_tiles(shape) + 1, dtype="int32"), shape)
        for dtype in ("bfloat16", "float32"):
            launch_tile_gather(meta(n_out, n_in, dtype=dtype), support, meta(nnz, dtype=dtype))
