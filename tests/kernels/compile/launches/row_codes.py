from shapes import meta, projections

from kernels.row_codes.format import RowCodes
from kernels.row_codes.in_triton import launch_quantize_rows, launch_transpose

DOTS = set()


def runs_on(launch, capability):
    """Casts to e4m3 begin with Ada."""
    return capability >= 89 or all(kind != "*fp8e4nv" for _, kind in launch.signature)


def launch_all():
    for n_out, n_in, _, _ in projections():
        for format in ("int8", "fp8"):
            q = RowCodes.empty((n_out, n_in), format, meta(1).device)
            launch_quantize_rows(meta(n_out, n_in), None, q, False)
            launch_quantize_rows(meta(n_out, n_in), meta(n_in, dtype="float32"), q, False)
        q = RowCodes.empty((n_out, n_in), "int8", meta(1).device)
        launch_quantize_rows(meta(n_out, n_in), None, q, True)
        launch_transpose(q, RowCodes.empty((n_in, n_out), "int8", meta(1).device))
