"""Projectors by name. A projector is one file and one line here."""

from pretrain.optim.config import MatrixConfig
from pretrain.optim.projector.base import Projector
from pretrain.optim.projector.random import Gaussian, RandomOrthogonal
from pretrain.optim.projector.subspace_iteration import SubspaceIteration
from pretrain.optim.projector.svd import ExactSVD, SampledSVD

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
