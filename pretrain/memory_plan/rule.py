"""What the step of one matrix takes on the way, by the rule that makes it: bytes beside state, gradient and weight.

m x n is the matrix in left form, rank x n its projection. Products are taken in the precision of the computation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.linear.int8 import GROUP
from pretrain.memory_plan.setting import Setting
from pretrain.optim.adamw_part import SMALLEST_8BIT
from pretrain.optim.matrix import Matrix

Size = Callable[[Any, Matrix, Setting], int]


@dataclass(frozen=True)
class RuleMemory:
    """Of one matrix."""

    direct: Size
    """The most that is alive while its message is made."""
    message: Size
    """The message, which all matrices have at once."""
    apply: Size
    """The most that is alive while its weight is changed."""


def read_basis(config: Any, matrix: Matrix) -> int:
    """The basis as it is used, where it is not kept so."""
    return 0 if config.projection == "fp32" else 4 * matrix.m * matrix.rank


def project(matrix: Matrix, setting: Setting, wide: bool = True) -> int:
    """Narrow copies of basis and (`wide`) gradient, and their product, which becomes fp32; or the product alone."""
    R, b = matrix.rank * matrix.n, setting.compute
    if b == 4:
        return 4 * R
    return max(b * (matrix.m * (matrix.rank + (matrix.n if wide else 0)) + R), (4 + b) * R)


def adam(config: Any, matrix: Matrix, setting: Setting) -> int:
    """Adam's direction of R, and what it takes."""
    R = 4 * matrix.rank * matrix.n
    if config.moments == "8bit":
        return R if setting.cuda else 8 * R
    return (4 if config.moments in ("bf16", "adafactor") else 2) * R + (2 * R if config.cautious else 0)


def low_rank_update(config: Any, matrix: Matrix, setting: Setting) -> int:
    """Factors in the precision of products, in the order of the weight; on a CPU their product, or a new weight."""
    b, numel = setting.compute, matrix.m * matrix.n
    copies = matrix.m * matrix.rank * b if b < 4 else 0  # of the basis: the message is in that precision
    if matrix.side == "right":
        copies += matrix.rank * (matrix.m + matrix.n) * b
    if setting.cuda:
        return copies
    if setting.wide_weights:
        return copies + (numel * b if b < 4 else 0)
    return copies + 4 * matrix.rank * (matrix.m + matrix.n) + _new_weight(config, numel)


def scaled_update(config: Any, matrix: Matrix, setting: Setting) -> int:
    """The weight itself, except in bf16 on a CPU."""
    return 0 if setting.cuda or setting.wide_weights else _new_weight(config, matrix.m * matrix.n)


def store_codes(matrix: Matrix, setting: Setting) -> int:
    """New codes of 8 bits with scales and zeros; on a CPU copies of the weight, and random words of 64 bits."""
    numel = matrix.m * matrix.n
    return numel + 5 * -(-numel // GROUP) + (0 if setting.cuda else 28 * numel)


def _new_weight(config: Any, numel: int) -> int:
    """A bf16 weight in PyTorch: fp32 old, step and new; rounding at random takes words of 64 bits."""
    return numel * (32 if config.weights == "bf16_stochastic" else 12)


def adamw_step(config: Any, numel: int, setting: Setting) -> int:
    """AdamW of one parameter of `numel` numbers: on a GPU one kernel in 8 bits, else a chain of operations in fp32."""
    wide = setting.param == 4
    if config.moments == "8bit" and numel >= SMALLEST_8BIT:
        if not setting.cuda:
            return (38 if config.cautious and not wide else 34) * numel
        if not config.cautious:
            return 0
    if wide and not config.cautious and not config.weight_decay:
        return 0
    if not wide and config.weights in ("bf16_stochastic", "int8"):
        return 32 * numel
    return (16 if config.cautious else 8 if wide else 12) * numel


def _R(matrix: Matrix, setting: Setting) -> int:
    """R or N, in the precision in which they travel."""
    return matrix.rank * matrix.n * setting.compute


def _galore_direct(config: Any, matrix: Matrix, setting: Setting) -> int:
    """R is there."""
    return max(adam(config, matrix, setting), 4 * matrix.rank * matrix.n + _R(matrix, setting))


def _full_direct(config: Any, matrix: Matrix, setting: Setting) -> int:
    """R is projected from the whole gradient first."""
    return max(project(matrix, setting), 4 * matrix.rank * matrix.n + adam(config, matrix, setting))


def _fira_apply(config: Any, matrix: Matrix, setting: Setting) -> int:
    squares = 0 if setting.cuda else 4 * matrix.m * matrix.n
    factors = matrix.rank * (matrix.m + 2 * matrix.n) * setting.compute
    return factors + max(squares, low_rank_update(config, matrix, setting))


def _apollo_apply(config: Any, matrix: Matrix, setting: Setting) -> int:
    squares = 4 * matrix.m * matrix.n if config.scale_type == "channel" and not setting.cuda else 0
    return max(squares, scaled_update(config, matrix, setting))


def _own_basis_direct(config: Any, matrix: Matrix, setting: Setting) -> int:
    narrow = matrix.m * matrix.n * setting.compute if setting.compute < 4 else 0
    small = 4 * matrix.rank * (2 * matrix.n + 5 * matrix.m)
    return max(_full_direct(config, matrix, setting), narrow + small)


def _own_basis_message(config: Any, matrix: Matrix, setting: Setting) -> int:
    """N, and the basis that the state has no longer."""
    return _R(matrix, setting) + 4 * matrix.m * matrix.rank


def _whole(copies: int) -> Size:
    """`copies` of the matrix in fp32."""
    return lambda config, matrix, setting: 4 * copies * matrix.m * matrix.n


GALORE = RuleMemory(_galore_direct, lambda config, matrix, setting: _R(matrix, setting), low_rank_update)
FIRA = RuleMemory(_full_direct, lambda config, matrix, setting: 2 * _R(matrix, setting), _fira_apply)
OWN_BASIS = RuleMemory(_own_basis_direct, _own_basis_message, low_rank_update)

RULE_MEMORY: dict[str, RuleMemory] = {
    "apollo": RuleMemory(_full_direct, lambda config, matrix, setting: 4 * matrix.n, _apollo_apply),
    "fira": FIRA,
    "frugal": RuleMemory(_full_direct, FIRA.message, _whole(2)),
    "galore": GALORE,
    "gradnormlorp": RuleMemory(_whole(4), GALORE.message, _whole(3)),
    "ldadam": OWN_BASIS,
    "muon": RuleMemory(_whole(3), lambda config, matrix, setting: matrix.m * matrix.n * setting.compute, scaled_update),
    "online_subspace": OWN_BASIS,
    "subtrack": FIRA,
}
"""By the file of the rule."""
