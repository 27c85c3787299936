"""The weights' singular spectra while a run trains: how many directions each kind of linear uses."""

from collections import defaultdict
from statistics import fmean

import torch
from torch import Tensor

from model.growth.tensors import LAYER
from model.linear.base import BaseLinear
from model.linear.low_rank import LowRank
from model.linear.sparse_low_rank import SparseLowRank
from model.spectrum import effective_rank, product_singular_values, singular_values, stable_rank
from pretrain.loop.run import Run
from pretrain.machine.distributed import gather_outcomes

MOST_LAYERS = 4
"""Layers that are measured, evenly spaced and the first and the last among them: a decomposition of one matrix of a 7B
takes seconds."""


def chosen_layers(n_layers: int) -> list[int]:
    """The layers that are measured, from 0."""
    if n_layers <= MOST_LAYERS:
        return list(range(n_layers))
    return [round(index * (n_layers - 1) / (MOST_LAYERS - 1)) for index in range(MOST_LAYERS)]


@torch.no_grad()
def measure_spectra(run: Run) -> dict[str, list[Tensor]]:
    """Singular values of each matrix of a kind, by the head of their tags: of the weight, and where it is a sum, of its
    low-rank and of its sparse part. Collective: each rank measures its share.
    """
    layers = chosen_layers(run.stage.config.model.n_layers)
    linears = [
        (match[2], module)
        for name, module in run.engine.model.named_modules()
        if isinstance(module, BaseLinear) and (match := LAYER.fullmatch(name)) and int(match[1]) in layers
    ]
    share, failed = [], None
    try:
        share = [spectra_of(linear, kind) for kind, linear in linears[run.world.rank :: run.world.size]]
    except Exception as error:  # of one rank alone, whose share the others would wait for
        failed = error
    found: dict[str, list[Tensor]] = defaultdict(list)
    for spectra in (spectra for shares in gather_outcomes(run.world, share, failed) for spectra in shares):
        for tag, values in spectra.items():
            found[tag].append(values)
    return dict(sorted(found.items()))


def ranks_of(spectra: dict[str, list[Tensor]]) -> dict[str, float]:
    """Stable and effective rank (model/spectrum.py) by TensorBoard tag, the mean over a kind's matrices."""
    found = {}
    for tag, matrices in spectra.items():
        found[f"{tag}/stable_rank"] = fmean(map(stable_rank, matrices))
        found[f"{tag}/effective_rank"] = fmean(map(effective_rank, matrices))
    return found


def spectra_of(linear: BaseLinear, kind: str) -> dict[str, Tensor]:
    """Singular values, on the CPU, of what the linear is made of, by the head of their tags."""
    weight = linear.dense_weight().float()
    found = {f"spectrum/weight/{kind}": singular_values(weight)}
    if isinstance(linear, LowRank | SparseLowRank):
        factors = linear.B.float(), linear.A.float()
        found[f"spectrum/low_rank/{kind}"] = product_singular_values(*factors, linear.scale)
    if isinstance(linear, SparseLowRank):
        sparse = weight - linear.scale * (factors[0] @ factors[1])
        found[f"spectrum/sparse/{kind}"] = singular_values(sparse)
    return {tag: values.cpu() for tag, values in found.items()}
