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


def projector_at(config: MatrixConfig, step: int) -> Projector:
    """The projector of a refresh after `step` applied updates: GoLore's preset changes it late in training."""
    random_from: int | None = getattr(config, "random_from_step", None)
    late = random_from is not None and step >= random_from
    return PROJECTORS["random_orthogonal" if late else config.projector]()
