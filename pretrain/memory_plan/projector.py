"""What finding a new basis takes, beside the gradient (m, n) fp32 and the old basis."""

from pretrain.optim.matrix import Matrix
from pretrain.optim.projector.subspace_iteration import OVERSAMPLING
from pretrain.optim.target import BITS, GROUP


def basis_bytes(matrix: Matrix, projection: str) -> int:
    """Bytes of the basis as it is kept."""
    numel = matrix.m * matrix.rank
    if projection in BITS:  # codes, and a scale and a zero point in fp32 and 8 bits for each group
        groups = -(-numel // GROUP)
        return groups * (GROUP * BITS[projection] // 8 + 5)
    return numel * (2 if projection == "bf16" else 4)


def new_basis(projector: str, matrix: Matrix) -> int:
    """Bytes; without the workspace of the linear algebra library."""
    m, n, rank = matrix.m, matrix.n, matrix.rank
    basis = m * rank
    if projector in ("gaussian", "random_orthogonal"):
        return 4 * 2 * basis
    scaled = m * n
    if projector in ("svd", "sampled_svd"):
        small = min(m, n)
        return 4 * (scaled + small * (m + n) + 2 * basis)
    k = min(rank + OVERSAMPLING, m, n)
    # The scaled gradient, Z and its Q, two bases and their sum.
    return 4 * (scaled + 2 * n * k + 3 * m * k)
