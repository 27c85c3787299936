"""Projectors by name. A projector is one file and one line here."""

from pretrain.optim.matrix_config import MatrixConfig
from pretrain.optim.projector.base import Projector
from pretrain.optim.projector.gaussian import Gaussian
from pretrain.optim.projector.random_orthogonal import RandomOrthogonal
from pretrain.optim.projector.sampled_svd import SampledSVD
from pretrain.optim.projector.subspace_iteration import SubspaceIteration
from pretrain.optim.projector.svd import ExactSVD

PROJECTORS: dict[str, type[Projector]] = {
    "subspace_iteration": SubspaceIteration,
    "svd": ExactSVD,
    "sampled_svd": SampledSVD,
    "gaussian": Gaussian,
    "random_orthogonal": RandomOrthogonal,
}


def is_late(config: MatrixConfig, step: int) -> bool:
    """Whether bases are random from here on: GoLore's preset says when, counting applied updates."""
    random_from: int | None = getattr(config, "random_from_step", None)
    return random_from is not None and step >= random_from
