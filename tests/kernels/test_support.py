import pytest
import torch

from kernels.decompress import tile_gather
from kernels.support import TileSupport, count_tiles


def draw(n_out, n_in, nnz, seed=0):
    return torch.randperm(n_out * n_in, generator=torch.Generator().manual_seed(seed))[:nnz].sort().values


@pytest.mark.parametrize(("n_out", "n_in", "nnz"), [(20, 24, 30), (129, 257, 3000), (300, 128, 0), (1, 1, 1)])
@pytest.mark.parametrize("tile", [(128, 128), (16, 64), (256, 256)], ids=str)
def test_holds_the_same_positions_in_tile_order(n_out, n_in, nnz, tile):
    indices = draw(n_out, n_in, nnz)
    support = TileSupport.from_flat(indices, (n_out, n_in), tile)
    support.check()
    assert support.loc.dtype == torch.uint16
    assert support.tile_ptr.dtype == torch.int32
    assert support.tile_ptr.numel() == count_tiles((n_out, n_in), tile) + 1
    flat = support.flat().long()
    assert torch.equal(flat.sort().values, indices)
    rows, columns = flat // n_in, flat % n_in
    tiles = rows // tile[0] * -(-n_in // tile[1]) + columns // tile[1]
    assert (tiles.diff() >= 0).all()
    counts = torch.bincount(tiles, minlength=support.tile_ptr.numel() - 1)
    assert torch.equal(support.tile_ptr.diff().long(), counts)
    within = rows % tile[0] * tile[1] + columns % tile[1]
    assert torch.equal(within, support.loc.long())


def test_kernels_address_rows_that_are_padded():
    """65536 x 32767 elements are fewer than 2^31; with rows of 32768 they are not."""
    loc, tile_ptr = torch.empty(0, dtype=torch.uint16), torch.zeros(1, dtype=torch.int32)
    TileSupport(loc, tile_ptr, (65535, 32767))
    for shape in ((65536, 32767), (65536, 32768)):
        with pytest.raises(ValueError, match=r"padded to multiples of 64, has 2\^31 elements or more"):
            TileSupport(loc, tile_ptr, shape)


@pytest.mark.parametrize(
    ("indices", "message"),
    [([3, 1, 2], "sorted"), ([1, 1, 2], "without repetition"), ([1, 2, 20], "outside"), ([-1, 2, 3], "outside")],
)
def test_refuses_what_is_not_a_support(indices, message):
    with pytest.raises(ValueError, match=message):
        TileSupport.from_flat(torch.tensor(indices), (4, 5))


def broken(change):
    support = TileSupport.from_flat(draw(129, 130, 500), (129, 130))
    loc, tile_ptr = support.loc.to(torch.int64), support.tile_ptr.clone()
    change(loc, tile_ptr)
    return TileSupport(loc.to(torch.uint16), tile_ptr, (129, 130))


@pytest.mark.parametrize(
    "change",
    [
        lambda loc, tile_ptr: loc[:2].copy_(loc[:2].flip(0)),
        lambda loc, tile_ptr: loc[1:2].copy_(loc[:1]),
        lambda loc, tile_ptr: loc[-1].fill_(128 * 128 - 1),  # the last tile is 1 x 2
        lambda loc, tile_ptr: tile_ptr[1].add_(10**6),
        lambda loc, tile_ptr: tile_ptr[-1].sub_(1),
        lambda loc, tile_ptr: tile_ptr[0].add_(1),
    ],
)
def test_a_damaged_support_is_found(change):
    with pytest.raises(ValueError, match="support"):
        broken(change).check()


def test_another_matrix_is_found():
    support = TileSupport.from_flat(draw(129, 130, 500), (129, 130))
    with pytest.raises(ValueError, match="tiles"):
        TileSupport(support.loc, support.tile_ptr, (128, 128)).check()


def test_a_gather_from_another_matrix_is_refused():
    support = TileSupport.from_flat(torch.tensor([3, 7]), (4, 5))
    with pytest.raises(ValueError, match=r"\(5, 4\); the support's matrix is \(4, 5\)"):
        tile_gather(torch.zeros(5, 4), support)
