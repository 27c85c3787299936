"""Balanced random blocks: another method than SLTrain's, whose products fill tensor cores without a dense W."""

import torch
from torch import Tensor

from kernels.block_low_rank_linear import block_low_rank_linear, reference
from kernels.block_support import BlockSupport, choose_block
from kernels.eight_bit_linear import EightBit
from model.errors import UserError
from model.linear.support.base import BaseSupport
from model.seeding import generator


class BlockSparse(BaseSupport):
    """k blocks of b x b in every block-row, block-columns used evenly; b the largest of 128, 64, 32, 16 that fits."""

    LAYOUT = "blocks by row"

    columns: Tensor

    def __init__(self, density: float, in_features: int, out_features: int, name: str):
        try:
            block, k = choose_block((out_features, in_features), density)
        except ValueError as error:
            projection = name.removesuffix(".support")
            raise UserError(f'linear.density with linear.support = "block": {projection}: {error}') from None
        super().__init__(in_features, out_features, (out_features // block * k, block, block), name)
        self.block, self.k = block, k
        self.register_buffer("columns", torch.empty(out_features // block, k, dtype=torch.int32))

    @staticmethod
    def count(density: float, in_features: int, out_features: int) -> int:
        block, k = choose_block((out_features, in_features), density)
        return out_features * k * block

    def linear(
        self, x: Tensor, A: Tensor, B: Tensor, values: Tensor, scale: float, eight_bit: EightBit | None = None
    ) -> Tensor:
        assert eight_bit is None, "there is no W"
        return block_low_rank_linear(x, A, B, values, self.blocks(), scale)

    def add_to(self, dense: Tensor, values: Tensor) -> Tensor:
        return dense.add_(reference.dense(values.to(dense.dtype), self.blocks()))

    def blocks(self) -> BlockSupport:
        """The support as the kernels take it, with what they have derived from it."""
        return self.view_of(self.columns, lambda: BlockSupport(self.columns, self.shape, self.block))

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        random = generator(seed, "support", self.name)
        self.columns.copy_(BlockSupport.draw(self.shape, self.block, self.k, random).columns)

    def _check(self) -> None:
        self.blocks().check()

    def extra_repr(self) -> str:
        return f"{self.k} blocks of {self.block} in each of {self.columns.shape[0]} block-rows"
