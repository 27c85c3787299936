from shapes import meta

from kernels.code_product.in_triton import LARGE_TILES, SMALL_TILES, Tile, fits, launch_group_product, launch_product
from kernels.quant.format import Quantized
from kernels.row_codes.format import RowCodes

DOTS = {"product_kernel", "group_product_kernel"}

SHAPES = ((11008, 4096), (5461, 2048))
"""(out, in): the others are compiled to the same."""


def runs_on(launch, capability):
    """FP8 products begin with Ada; and each family of cards has tiles of its own."""
    if capability < 89 and any(kind == "*fp8e4nv" for _, kind in launch.signature):
        return False
    constants, options = dict(launch.constants), dict(launch.options)
    tile = Tile(constants["ROWS"], constants["COLS"], options["num_warps"], options["num_stages"])
    return "GROUP" in constants or tile in (LARGE_TILES if capability in (90, 100) else SMALL_TILES)


def launch_all():
    device = meta(1).device
    for n_out, n_in in SHAPES:
        y = meta(4096, n_out)
        for format in ("int8", "fp8"):
            a, b = (RowCodes.empty((rows, n_in), format, device) for rows in (4096, n_out))
            for tile in dict.fromkeys(SMALL_TILES + LARGE_TILES):
                if fits(tile, a.codes.dtype):
                    launch_product(a, b, y, tile)
            launch_product(a, RowCodes(b.codes, None, n_in), y, SMALL_TILES[0])
        a = RowCodes.empty((4096, n_in), "int8", device)
        launch_group_product(a, Quantized.empty((n_out, n_in), 8, 256, device), y)
