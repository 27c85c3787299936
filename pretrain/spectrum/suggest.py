"""Ranks for [linear.ranks] by WeLore's rule (arXiv 2407.11239) from the spectra of a checkpoint."""

from typing import Any

from torch import Tensor

from model.counts import count_parameters
from model.errors import UserError
from model.linear.low_rank import LowRank
from model.linear.sparse_low_rank import SparseLowRank
from model.linear.support import SUPPORTS
from model.spectrum import Ranks, choose_ranks, largest_rank, ranks_for_reduction
from pretrain.config.schema import Config

Shapes = dict[str, tuple[int, int]]


def suggest(
    config: Config,
    shapes: Shapes,
    spectra: dict[str, Tensor],
    reduction: float | None,
    parameters: int | None,
    multiple: int = 1,
) -> Ranks:
    """Give every linear a rank by one threshold of all of W's normalised singular values.

    The linears are those of `config`, or low_rank ones in the place of dense ones; `shapes` are (out, in) by name. Give
    one of `reduction`, the part of all singular values to leave out, and `parameters`, the most that the whole model
    may have. Ranks are multiples of `multiple`, except for those below it, and none makes factors, with the sparse
    values beside them, larger than the dense matrix. UserError where no ranks reach the target.
    """
    linear = config.linear
    caps = {name: largest_rank(*shape, _entries(linear, *shape)) for name, shape in shapes.items()}
    if reduction is not None:
        found = ranks_for_reduction(spectra, reduction, caps, multiple)
        if found is None:
            raise UserError(f"--reduction {reduction:g}: every matrix keeps one singular value at least; ask for less")
        return found
    assert parameters is not None
    kind = linear if hasattr(linear, "ranks") else LowRank.Config()
    ones: Any = kind.model_copy(update={"rank": 1, "ranks": ()})
    least = count_parameters(config.model, ones)["total"]

    def total(ranks: dict[str, int]) -> int:
        return least + sum((rank - 1) * sum(shapes[name]) for name, rank in ranks.items())

    found = choose_ranks(spectra, lambda ranks: total(ranks) <= parameters, caps, multiple)
    if found is None:
        raise UserError(
            f"--target-parameters {parameters:,}: with every rank 1 the model has {least:,} already (embedding, head, "
            "norms and sparse values count too); ask for more"
        )
    return found


def _entries(linear: Any, n_out: int, n_in: int) -> int:
    """Count the sparse values of a linear of this shape."""
    if not isinstance(linear, SparseLowRank.Config):
        return 0
    return int(SUPPORTS[linear.support].count(linear.density, n_in, n_out))
