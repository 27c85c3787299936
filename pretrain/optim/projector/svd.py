"""The exact leading singular vectors, as GaLore was published (arXiv 2403.03507)."""

import torch
from torch import Tensor

from pretrain.optim.matrix import Matrix
from pretrain.optim.projector.base import Projector, align_signs, scaled
from pretrain.optim.projector.subspace_iteration import SubspaceIteration


class ExactSVD(Projector):
    """P = U[:, :rank] of G = U S V^T; by subspace iteration where the library's SVD does not converge."""

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        assert G is not None
        G = scaled(G)
        if G is None:
            return None
        try:
            U = torch.linalg.svd(G, full_matrices=False).U
        except torch.linalg.LinAlgError:
            return SubspaceIteration().basis(matrix, G, old, random)
        return align_signs(U[:, : matrix.rank], old).contiguous()
