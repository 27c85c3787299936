from shapes import meta

from kernels.row_codes.format import RowCodes
from kernels.row_codes.in_triton import launch_quantize_rows, launch_transpose

DOTS = set()

SHAPES = ((11008, 4096), (5461, 2048), (2048, 5461), (512, 512))


def runs_on(launch, capability):
    """Casts to e4m3 begin with Ada."""
    return capability >= 89 or all(kind != "*fp8e4nv" for _, kind in launch.signature)


def launch_all():
    for n_out, n_in in SHAPES:
        q = RowCodes.empty((n_out, n_in), "int8", meta(1).device)
        launch_quantize_rows(meta(n_out, n_in), None, q, False)
        launch_transpose(q, RowCodes.empty((n_in, n_out), "int8", meta(1).device))
    launch_quantize_rows(meta(n_out, n_in), None, q, True)
    launch_quantize_rows(meta(n_out, n_in), meta(n_in, dtype="float32"), q, False)
    q = RowCodes.empty((n_out, n_in), "fp8", meta(1).device)
    launch_quantize_rows(meta(n_out, n_in), None, q, False)
    launch_quantize_rows(meta(n_out, n_in), meta(n_in, dtype="float32"), q, False)
