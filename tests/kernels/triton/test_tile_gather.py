import pytest
import torch

from kernels.decompress import tile_gather
from kernels.support import TileSupport


@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(200, 136, 900, 64), (33, 31, 0, 32), (97, 65, 2, 16), (97, 65, 97 * 65, 16)])
def test_gathers_in_tile_order(shape, dtype, out_dtype, device):
    n_out, n_in, nnz, tile = shape
    random = torch.Generator().manual_seed(0)
    flat = torch.randperm(n_out * n_in, generator=random)[:nnz].sort().values
    support = TileSupport.from_flat(flat.to(device), (n_out, n_in), (tile, tile))
    wide = torch.randn(n_out, n_in + 7, generator=random).to(dtype)  # a row stride that is not the width
    found = tile_gather(wide.to(device)[:, :n_in], support, out_dtype).cpu()
    assert found.dtype == (out_dtype or dtype)
    assert torch.equal(found, wide[:, :n_in].flatten()[support.flat().cpu()].to(found.dtype))
    assert torch.equal(found.sort().values, wide[:, :n_in].flatten()[flat].to(found.dtype).sort().values)


def test_refuses_rows_that_are_not_contiguous(device):
    support = TileSupport.from_flat(torch.arange(3, device=device), (4, 4), (16, 16))
    with pytest.raises(ValueError, match="rows must be contiguous"):
        tile_gather(torch.ones(4, 4, device=device).t(), support)
