import torch
from shapes import meta, projections

from kernels.block_low_rank_linear.in_triton import launch_block_gradient, launch_block_low_rank
from kernels.block_support import BlockSupport, choose_block

DOTS = {"block_low_rank_kernel", "block_gradient_kernel"}
TOKENS = 2048


def supports():
    """With the rank, of every projection."""
    for sides in projections():
        n_out, n_in = (5504 if side == 5461 else side for side in sides[:2])  # no block divides 5461
        rank, density = sides[2:]
        block, k = choose_block((n_out, n_in), density)
        yield BlockSupport(meta(n_out // block, k, dtype="int32"), (n_out, n_in), block), rank


def launch_all():
    for support, rank in supports():
        (n_out, n_in), block = support.shape, support.block
        with torch.device("meta"):
            values = meta(support.n_blocks, block, block)
            x, y, z = meta(TOKENS, n_in), meta(TOKENS, n_out), meta(TOKENS, rank)
            launch_block_low_rank(x, z, meta(n_out, rank), values, support, 0.25, False, y)
            launch_block_low_rank(y, z, meta(rank, n_in).t(), values, support, 0.25, True, x)
            launch_block_gradient(y, x, support, values)
            launch_block_gradient(y, x, support, meta(*values.shape, dtype="float32"))
    for support, rank in {support.block: (support, rank) for support, rank in supports()}.values():
        (n_out, n_in), block = support.shape, support.block
        with torch.device("meta"):
            values = fp32(support.n_blocks, block, block)
            x, y, z = fp32(TOKENS, n_in), fp32(TOKENS, n_out), fp32(TOKENS, rank)
            launch_block_low_rank(x, z, fp32(n_out, rank), values, support, 0.25, False, y)
            launch_block_low_rank(y, z, fp32(rank, n_in).t(), values, support, 0.25, True, x)
            launch_block_gradient(y, x, support, values)


def fp32(*size):
    return meta(*size, dtype="float32")
