"""Projectors by name. A projector is one file and one line here."""

from pretrain.optim.projector.base import Projector
from pretrain.optim.projector.svd import ExactSVD

PROJECTORS: dict[str, type[Projector]] = {
    "svd": ExactSVD,
}
