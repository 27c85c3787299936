import time

import pytest
import torch

from kernels.block_low_rank_linear.reference import dense
from kernels.block_support import BlockSupport, choose_block

# out, in, block, blocks in a block-row
SHAPES = [
    (512, 512, 16, 1),
    (96, 160, 16, 3),  # rows straddle permutations
    (160, 48, 16, 3),  # every block-row is full
    (112, 80, 16, 4),
    (32, 688, 16, 5),  # most block-columns are empty
    (256, 256, 128, 2),
]


def draw(n_out, n_in, block, k, seed=0):
    return BlockSupport.draw((n_out, n_in), block, k, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_rows_are_distinct_and_columns_even(shape, seed):
    support = draw(*shape, seed)
    support.check()
    n_out, n_in, block, k = shape
    assert support.columns.dtype == torch.int32
    assert support.columns.shape == (n_out // block, k)
    loads = torch.bincount(support.columns.flatten(), minlength=n_in // block)
    assert loads.max() - loads.min() <= 1


def test_the_generator_alone_decides():
    assert torch.equal(draw(256, 512, 16, 3).columns, draw(256, 512, 16, 3).columns)
    assert not torch.equal(draw(256, 512, 16, 3).columns, draw(256, 512, 16, 3, seed=1).columns)


def test_every_place_is_about_as_likely():
    counts = torch.zeros(5, 7)
    for seed in range(2000):
        counts.scatter_add_(1, draw(80, 112, 16, 3, seed).columns.long(), torch.ones(5, 3))
    expected = 2000 * 3 / 7
    assert (counts - expected).abs().max() <= 5 * (2000 * 3 / 7 * 4 / 7) ** 0.5  # five standard deviations


def test_a_large_draw_is_quick():
    start = time.process_time()
    draw(11008, 4096, 64, 3)
    draw(11008, 4096, 16, 13)
    assert time.process_time() - start < 1


def test_full_rank():
    """Balanced blocks reach full rank where as many blocks at random leave rows and columns empty."""
    support = draw(512, 512, 16, 1)
    values = torch.randn(support.n_blocks, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.linalg.matrix_rank(dense(values, support)) == 512


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_indices_name_every_block_once(shape):
    support = draw(*shape)
    for transposed in (False, True):
        index = support.index(transposed)
        assert all(t.dtype == torch.int32 for t in index)
        assert index.blocks.sort().values.tolist() == list(range(support.n_blocks))
        rows, columns = (index.inputs, index.outputs) if transposed else (index.outputs, index.inputs)
        assert torch.equal(rows, index.blocks // support.k)
        assert torch.equal(columns, support.columns.flatten()[index.blocks])
        assert len(index.ptr) == support.grid[transposed] + 1
        assert index.ptr[0] == 0
        for i in range(support.grid[transposed]):
            assert index.outputs[index.ptr[i] : index.ptr[i + 1]].tolist() == [i] * int(index.ptr[i + 1] - index.ptr[i])
        assert index.ptr[-1] == support.n_blocks
        assert support.index(transposed).blocks is index.blocks  # made once
        blocks, inputs = support.padded(transposed)
        kept = blocks < support.n_blocks
        assert torch.equal(blocks[kept], index.blocks)
        assert torch.equal(inputs[kept], index.inputs)
        assert kept.sum(1).tolist() == index.ptr.diff().tolist()


@pytest.mark.parametrize(
    ("columns", "shape", "message"),
    [
        ([[0, 3], [1, 2]], (32, 48), "outside"),
        ([[-1, 1], [1, 2]], (32, 48), "outside"),
        ([[0, 1], [2, 1]], (32, 48), "ascend"),
        ([[0, 1], [1, 1]], (32, 48), "ascend"),
        ([[0, 1]], (32, 48), "block-rows"),
        ([[], []], (32, 48), "block-rows"),
        ([[0, 1], [1, 2]], (32, 50), "divide"),
    ],
)
def test_a_wrong_support_is_refused(columns, shape, message):
    support = BlockSupport(torch.tensor(columns, dtype=torch.int32), shape, 16)
    with pytest.raises(ValueError, match=message):
        support.check()


def test_a_draw_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="divide"):
        draw(100, 64, 16, 1)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"1 to 4 blocks, not {k}"):
            draw(64, 64, 16, k)


@pytest.mark.parametrize(
    ("shape", "density", "expected"),
    [
        ((512, 512), 0.03, (16, 1)),
        ((1376, 512), 0.03, (16, 1)),
        ((512, 1376), 0.03, (16, 3)),  # one block of 32 in each block-row would leave most inputs out
        ((2048, 2048), 0.03, (64, 1)),
        ((2736, 1024), 0.03, (16, 2)),
        ((11008, 4096), 0.05, (64, 3)),  # two blocks of 128 would be a quarter too many
        ((4096, 11008), 0.05, (128, 4)),
        ((32, 32), 0.9, (32, 1)),
    ],
)
def test_the_largest_block_that_comes_near(shape, density, expected):
    assert choose_block(shape, density) == expected


def test_no_block_fits():
    with pytest.raises(ValueError, match=r"5461 x 2048.* multiple of 64, e\.g\. 5504 for 5461"):
        choose_block((5461, 2048), 0.03)
    with pytest.raises(ValueError, match="5504 for 5461"):
        choose_block((2048, 5461), 0.03)
    with pytest.raises(ValueError, match=r"density 0\.01 leaves no 16 x 16 block .* 0\.03125"):
        choose_block((512, 512), 0.01)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_that_is_none_is_refused(density):
    with pytest.raises(ValueError, match=r"above 0 and at most 1"):
        choose_block((128, 256), density)


def test_full_density():
    assert choose_block((128, 256), 1.0) == (128, 2)
