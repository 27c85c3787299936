"""Linears some of whose entries are values on a fixed support."""

from typing import Any

from torch import nn

from kernels.sparse_low_rank_linear.choice import Choice
from model.linear.base import BaseLinear
from model.linear.support import SUPPORTS
from model.linear.support.base import BaseSupport


class SupportedLinear(BaseLinear):
    """y = x W^T, where W is a sum of values (nnz,) on `support` and of a product of `rank`, 0 for none.

    A member's Config has a `support`, a key of SUPPORTS.
    """

    support: BaseSupport
    values: nn.Parameter
    rank: int

    @staticmethod
    def may_choose(config: Any) -> bool:
        return bool(SUPPORTS[config.support].MAY_BUILD)

    multiplies_matrix = may_choose

    @staticmethod
    def count_entries(config: Any, in_features: int, out_features: int) -> int:
        """Count the values on the support."""
        return int(SUPPORTS[config.support].count(config.density, in_features, out_features))

    @classmethod
    def training_flops(
        cls,
        config: Any,
        in_features: int,
        out_features: int,
        tokens: int,
        choice: Choice | None = None,
        micro_steps: int = 1,
    ) -> int:
        """Count what the choice computes: the path through the parts of W, or the dense matmuls and what W costs.

        That is building W as often as its keep asks, and reducing its gradient to both factors' as often as it is not
        summed. Recomputed activations count nothing, so neither does a W that is built again for them.
        """
        how, numel = choice or Choice(), out_features * in_features
        if not cls.may_choose(config) or how.path == "csr":
            return super().training_flops(config, in_features, out_features, tokens, choice, micro_steps)
        built = {"none": 2 * micro_steps, "layer": micro_steps, "step": 1}[how.keep]
        reduced = 1 if how.accumulate else micro_steps
        rank = getattr(config, "rank", 0)
        return 6 * micro_steps * tokens * numel + (2 * built + 4 * reduced) * numel * rank
