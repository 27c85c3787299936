import pytest
import torch

from kernels.decompress import decompress
from kernels.decompress.reference import decompress as reference
from kernels.support import TileSupport

# out, in, rank, nnz, tile
SHAPES = [
    (64, 64, 16, 200, (64, 64)),
    (200, 136, 48, 900, (64, 64)),
    (97, 65, 1, 300, (32, 32)),
    (40, 171, 70, 400, (16, 64)),
    (33, 31, 5, 0, (32, 32)),
    (100, 90, 7, 3, (16, 16)),  # most tiles are empty
    (130, 70, 0, 500, (64, 64)),  # nothing but S
]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "matmul+scatter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(shape, dtype, fused, device):
    n_out, n_in, rank, nnz, tile = shape
    random = torch.Generator().manual_seed(0)
    A, B = torch.randn(rank, n_in, generator=random).to(dtype), torch.randn(n_out, rank, generator=random).to(dtype)
    flat = torch.randperm(n_out * n_in, generator=random)[:nnz].sort().values
    support = TileSupport.from_flat(flat.to(device), (n_out, n_in), tile)
    values = torch.randn(nnz, generator=random).to(dtype)
    W = decompress(A.to(device), B.to(device), values.to(device), support, 0.25, fused=fused).cpu()
    exact = reference(A.double(), B.double(), values.double(), support.flat().cpu(), 0.25)
    assert W.dtype == dtype
    if dtype == torch.float32:
        assert (W - exact).norm() <= 1e-6 * exact.norm()
    else:  # rounded once, and once more where an entry is added
        rounded = reference(A.double(), B.double(), values.double() * 0, support.flat().cpu(), 0.25).to(dtype).double()
        rounded = rounded.flatten().index_add(0, support.flat().cpu(), values.double()).view_as(exact)
        assert ((W.double() - rounded).abs() <= torch.finfo(dtype).eps * rounded.abs() + 1e-6).all()
