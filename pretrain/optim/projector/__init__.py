"""Projectors by name. A projector is one file and one line here."""

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
