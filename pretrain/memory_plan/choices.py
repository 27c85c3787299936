"""How the sparse-plus-low-rank linears of a planned run will compute."""

from typing import Any

from kernels.sparse_low_rank_linear.choice import Choice
from model.transformer import Transformer
from pretrain.config.schema import Config
from pretrain.engine.kernel_choices import choosing_linears, how_long, shape_name


def choices(
    config: Config, shape: Transformer, cuda: bool, micro_steps: int, free: int, kernels: dict[str, Any] | None
) -> dict[str, Any]:
    """The record of their choices: `kernels` where a run has chosen, else what `decide` would with `free` bytes.

    Where W is built in one kernel or two makes no difference here, and neither does a choice by measurements: the CSR
    path is planned where the configuration names it.
    """
    linears = choosing_linears(shape)
    if not linears:
        return {}
    if kernels and kernels.get("shapes"):
        return kernels
    if config.kernels.path == "csr":
        choice = Choice(path="csr")
    else:
        keep, accumulate = how_long(linears, shape, config, micro_steps, free)
        choice = Choice(keep=keep, accumulate=accumulate)
    shapes = {shape_name(linear): choice.to_json() for linear in linears}
    return {"device": "cuda" if cuda else "cpu", "shapes": shapes}
