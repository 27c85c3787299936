"""Linears by name. A linear is one file and one line here."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from model.errors import UserError
from model.linear.base import BaseLinear
from model.linear.cola import CoLA
from model.linear.dense import Dense
from model.linear.lora import Lora
from model.linear.lora_fa import LoraFA
from model.linear.low_rank import LowRank
from model.linear.poet import Poet
from model.linear.ranks import linear_at
from model.linear.relora import ReLora
from model.linear.sparse import Sparse
from model.linear.sparse_low_rank import SparseLowRank
from model.linear.sst import Sst

LINEARS: dict[str, type[Any]] = {
    "dense": Dense,
    "low_rank": LowRank,
    "sparse_low_rank": SparseLowRank,
    "sparse": Sparse,
    "cola": CoLA,
    "lora": Lora,
    "lora_fa": LoraFA,
    "relora": ReLora,
    "poet": Poet,
    "sst": Sst,
}

if TYPE_CHECKING:
    from typing import Any as LinearConfig
else:
    LinearConfig = Annotated[reduce(or_, (linear.Config for linear in LINEARS.values())), Field(discriminator="name")]


def build_linear(
    config: LinearConfig, in_features: int, out_features: int, name: str, init_std: float = 0.02
) -> BaseLinear:
    """An uninitialised linear of the kind `config.name`; `name` is its full name in the model and seeds its values.

    UserError when the configuration does not fit the shape.
    """
    return LINEARS[config.name](linear_at(config, name), in_features, out_features, name, init_std)


def require_matrices(config: LinearConfig, what: str, fix: str) -> None:
    """UserError, which names `what` needs the dense weights of such linears and the `fix`, where they have none."""
    if reason := LINEARS[config.name].not_a_matrix:
        raise UserError(
            f'{what}: linears with linear.name = "{config.name}" have no dense weights, since {reason}; {fix}'
        )
