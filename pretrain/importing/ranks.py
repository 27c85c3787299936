"""A rank for every matrix of an import by WeLore's rule, from the spectra of the dense weights."""

from collections.abc import Callable, Mapping
from typing import Any

from model.errors import UserError
from model.hf.load import Folder
from model.linear import LINEARS
from model.linear.support import SUPPORTS
from model.spectrum import largest_rank, ranks_for_reduction, singular_values
from pretrain.importing.weights import read_finite


def with_ranks(
    folder: Folder, linear: Mapping[str, Any], reduction: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """`linear`, the keys of a [linear], with linear.ranks that leave out the part `reduction` of all singular values.

    A matrix gets no rank at which its factors and sparse entries would be more numbers than it has itself; linear.rank,
    which decides for none then, becomes the smallest one. Reads every projection once; in memory is one of them.
    UserError where no rank would be left.
    """
    config = LINEARS[linear["name"]].Config(**linear)
    spectra, caps = {}, {}
    for tensor in folder.tensors():
        name = tensor.ours.removesuffix(".weight")
        if name.endswith("_proj"):
            spectra[name] = singular_values(read_finite(folder, tensor))
            n_out, n_in = tensor.shape
            density = getattr(config, "density", None)
            entries = SUPPORTS[config.support].count(density, n_in, n_out) if density else 0
            caps[name] = largest_rank(n_out, n_in, entries)
            say(f"{name}: {min(n_out, n_in):,} singular values")
    found = ranks_for_reduction(spectra, reduction, caps)
    if found is None:
        raise UserError(f"--reduction {reduction:g} leaves less than a rank of 1 for each matrix; give a smaller one")
    if found.reduction > reduction + 0.01:
        say(
            f"--reduction {reduction:g}: {found.reduction:.0%} of all singular values are left out, since some "
            "matrices would have more numbers in factors than they have themselves"
        )
    return {**linear, "rank": min(found.ranks.values()), "ranks": found.ranks}
