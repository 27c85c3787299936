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


def is_late(config: MatrixConfig, step: int, total_steps: int) -> bool:
    """Whether new bases are random after `step` of the run's `total_steps`: GoLore's preset says for which share."""
    share: float = getattr(config, "random_fraction", 0.0)
    return step >= total_steps - round(share * total_steps)
