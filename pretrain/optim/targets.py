"""Which parameters of a model a matrix optimizer projects."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from model.errors import UserError
from model.linear.base import BaseLinear
from model.linear.ranks import deciding, rank_of, require_patterns_used
from pretrain.optim.config import MatrixConfig
from pretrain.optim.matrix import Matrix, projected_side
from pretrain.optim.rules import PRESETS


def find_targets(model: nn.Module, config: MatrixConfig) -> dict[str, Matrix]:
    """The matrices to project by parameter name, in the model's order; UserError when `config` does not fit the model.

    `config.targets` are patterns over the parameters of the linears. A factor of a linear may be named too, if the rule
    has no subspace or it holds all of the factor: below that the product of two ranks would be left, and training
    suffers.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, BaseLinear)}
    inside = {f"{name}.{own}": shape for name, linear in linears.items() for own, shape in linear.shapes().items()}
    dense = {f"{name}.{own}" for name, linear in linears.items() for own in linear.projectable}
    outside = [name for name, _ in model.named_parameters() if name not in inside]
    targets: dict[str, Matrix] = {}
    for pattern in config.targets:
        matched = [name for name in inside if fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(_no_match(pattern, outside, list(inside)))
        for name in matched:
            rows, cols = _shape(name, inside[name])
            rank = rank_of(config, _linear_of(name))
            if name not in dense and "rank" not in config.ignored and min(rows, cols) > rank:
                raise UserError(
                    f"optimizer.targets {pattern!r} matches {name}, a factor of rank {min(rows, cols)}: projecting it "
                    f"to optimizer.rank {rank} would leave less than the linear's own rank; leave it out, so "
                    "that it takes AdamW"
                )
            _require_rank(name, min(rows, cols), rank, config)
            side = projected_side((rows, cols), config.proj_type, PRESETS[config.name].square_side)
            targets[name] = Matrix(name, (rows, cols), side, rank)
    if config.weights == "int8" and dense - targets.keys():
        raise UserError(
            f'optimizer.targets leaves out {min(dense - targets.keys())}, but with optimizer.weights = "int8" the '
            "optimizer trains no other dense weights; match them all, or set other weights"
        )
    return {name: targets[name] for name in inside if name in targets}


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise UserError(f"optimizer.targets matches {name}, which is no matrix; leave it out")
    return shape[0], shape[1]


def require_ranks_used(targets: Iterable[str], config: MatrixConfig) -> None:
    """UserError for a pattern of optimizer.ranks that decides the rank of none of `targets`, parameters by name."""
    require_patterns_used("optimizer.ranks", config.ranks, map(_linear_of, targets))


def _linear_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _require_rank(name: str, side: int, rank: int, config: MatrixConfig) -> None:
    if "rank" not in config.ignored and rank > side:
        found = deciding(config.ranks, _linear_of(name))
        key = f"optimizer.ranks {found[0]!r} =" if found else "optimizer.rank"
        raise UserError(f"{key} {rank} exceeds the smaller side of {name} ({side}); set it to at most {side}")


def _no_match(pattern: str, outside: list[str], inside: list[str]) -> str:
    if pattern in MatrixConfig.model_fields["targets"].default:
        return (
            "optimizer.name: there is nothing to project, the linears have no dense weights; their factors take AdamW: "
            'set optimizer.name = "adamw", or linear.name = "dense"'
        )
    wrong = [name for name in outside if fnmatchcase(name, pattern)]
    if wrong:
        return f"optimizer.targets {pattern!r} matches {wrong[0]}, which is never projected; name linears: {inside[0]}"
    return f"optimizer.targets {pattern!r} matches nothing; names look like {inside[0]}"
