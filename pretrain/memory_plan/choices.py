"""How the sparse-plus-low-rank linears of a planned run will compute."""

from collections.abc import Callable
from typing import Any

from kernels.sparse_low_rank_linear.choice import Choice
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.kernel_choices import choosing_linears, how_long
from pretrain.memory_plan.setting import Setting


def choices(
    config: Config, shape: Transformer, setting: Setting, micro_steps: int, free: int, kernels: dict[str, Any] | None
) -> Callable[[tuple[int, int]], Choice]:
    """Their Choice by shape (out, in): as recorded in `kernels`, else as `decide` would with `free` bytes of memory.

    Where W is built in one kernel or two makes no difference here, and neither does a choice by measurements: the CSR
    path is planned where the configuration names it.
    """
    linears = choosing_linears(shape)
    if not linears:
        return lambda shape: Choice()
    if kernels and kernels.get("shapes"):
        recorded = {key.split(" ")[0]: Choice(**fields) for key, fields in kernels["shapes"].items()}
        return lambda shape: recorded[f"{shape[0]}x{shape[1]}"]
    if config.kernels.path == "csr":
        return lambda shape: Choice(path="csr")
    keep, accumulate = how_long(linears, shape, config, micro_steps, free)
    return lambda shape: Choice(keep=keep, accumulate=accumulate)
