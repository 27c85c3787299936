"""The exact leading singular vectors, as GaLore was published (arXiv 2403.03507)."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.projector.base import Projector, align_signs


class ExactSVD(Projector):
    """P = U[:, :rank] of G = U S V^T."""

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        assert G is not None
        if not bool(torch.isfinite(G).all()) or not bool(G.any()):
            return None
        U = torch.linalg.svd(G, full_matrices=False).U
        return align_signs(U[:, : matrix.rank], old).contiguous()
