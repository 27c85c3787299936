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


class SampledSVD(Projector):
    """P = columns of U of G = U S V^T: `rank` of all, without replacement, column i with probability ~ S_i.

    In the order of their singular values. The leading ones where the library's SVD does not converge.
    """

    def basis(self, matrix: Matrix, G: Tensor | None, old: Tensor | None, random: torch.Generator) -> Tensor | None:
        assert G is not None
        G = scaled(G)
        if G is None:
            return None
        try:
            U, S, _ = torch.linalg.svd(G, full_matrices=False)
        except torch.linalg.LinAlgError:
            return SubspaceIteration().basis(matrix, G, old, random)
        # The largest of log S_i + Gumbel noise are such a sample (Efraimidis and Spirakis, 2006).
        noise = -torch.empty(S.shape, dtype=torch.float64).exponential_(generator=random).log()
        chosen = (S.double().log() + noise.to(S.device)).topk(matrix.rank).indices.sort().values
        return align_signs(U[:, chosen], old).contiguous()
