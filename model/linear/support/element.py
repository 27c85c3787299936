"""The support of SLTrain (arXiv 2406.02214): single entries, every set of them equally likely."""

import torch
from torch import Tensor, nn

from kernels.eight_bit_linear import EightBit
from kernels.sparse_low_rank_linear import Choice, StepCache, sparse_low_rank_linear
from kernels.sparse_low_rank_linear.choice import choose
from kernels.support import TILE, TileSupport, check_size, count_tiles
from model.errors import UserError
from model.linear.support.base import BaseSupport
from model.seeding import generator


class ElementSparse(BaseSupport):
    """Single entries in tile order, in 16 bits each."""

    LAYOUT = f"tiles {TILE[0]}x{TILE[1]}"
    MAY_BUILD = True

    loc: Tensor
    tile_ptr: Tensor

    def __init__(self, density: float, in_features: int, out_features: int, name: str):
        projection = name.removesuffix(".support")
        try:
            check_size((out_features, in_features))
        except ValueError as error:
            raise UserError(f"{projection}: {error}") from None
        size = self.count(density, in_features, out_features)
        if size == 0:
            raise UserError(
                f"linear.density {density} leaves {projection} ({out_features} x {in_features}) without sparse "
                'entries; raise it or set linear.name = "low_rank"'
            )
        super().__init__(in_features, out_features, (size,), name)
        self.register_buffer("loc", torch.empty(size, dtype=torch.uint16))
        self.register_buffer("tile_ptr", torch.empty(count_tiles(self.shape) + 1, dtype=torch.int32))
        self.choice: Choice | None = None
        """How the linear computes; None lets each call choose for its input."""
        self.cache = StepCache()

    @staticmethod
    def count(density: float, in_features: int, out_features: int) -> int:
        return int(density * out_features * in_features)

    def linear(
        self, x: Tensor, A: Tensor, B: Tensor, values: Tensor, scale: float, eight_bit: EightBit | None = None
    ) -> Tensor:
        choice = self.choice or self.choose(x.numel() // x.shape[-1], A.shape[0], x.dtype, x.device)
        if eight_bit is not None and self.choice is None and choice.path == "csr":
            choice = Choice()
        tiles, cache = self.tiles(), self.cache
        return sparse_low_rank_linear(x, A, B, values, tiles, scale, choice=choice, cache=cache, eight_bit=eight_bit)

    def choose(self, tokens: int, rank: int, dtype: torch.dtype, device: torch.device) -> Choice:
        try:
            return choose(self.shape, rank, self.values_shape[0], tokens, dtype, device)
        except ValueError as error:  # in the device's measurements
            raise UserError(str(error)) from None

    def tiles(self) -> TileSupport:
        """The support as the kernels take it, with what they have derived from it."""
        return self.view_of(self.loc, lambda: TileSupport(self.loc, self.tile_ptr, self.shape))

    def flat(self) -> Tensor:
        """Return flat row-major positions (nnz,) int32 in the order of the values."""
        return self.tiles().flat()

    def add_to(self, dense: Tensor, values: Tensor) -> Tensor:
        dense.view(-1).index_add_(0, self.flat(), values.to(dense.dtype))
        return dense

    def _check(self) -> None:
        self.tiles().check()

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        size, numel = self.values_shape[0], self.shape[0] * self.shape[1]
        drawn = TileSupport.from_flat(draw_positions(size, numel, seed, self.name), self.shape)
        self.loc.copy_(drawn.loc)
        self.tile_ptr.copy_(drawn.tile_ptr)

    def extra_repr(self) -> str:
        return f"{self.values_shape[0]} of {self.shape[0]} x {self.shape[1]}, {self.LAYOUT}"


def step_caches(model: nn.Module) -> list[StepCache]:
    """Return what the linears of `model` keep over an optimizer step."""
    return [module.cache for module in model.modules() if isinstance(module, ElementSparse)]


def draw_positions(size: int, numel: int, seed: int, name: str) -> Tensor:
    """Draw `size` of `numel` flat positions, sorted int32, every subset equally likely; from (seed, name) alone.

    Draws with replacement, in each round as many as are missing, so that the support is never overfull: by symmetry the
    result is a uniform subset. A permutation of a 7B model's matrix (45 million entries) would take seconds.
    """
    assert 0 <= size <= numel < 2**31
    drawn = min(size, numel - size)  # above one half, draw the complement
    random = generator(seed, "support", name)
    chosen = torch.zeros(numel, dtype=torch.bool)
    missing = drawn
    while missing:
        chosen.index_fill_(0, torch.randint(numel, (missing,), generator=random), True)
        missing = drawn - int(chosen.count_nonzero())
    if drawn != size:
        chosen.logical_not_()
    return chosen.nonzero().flatten().to(torch.int32)
