"""A rank of its own for every matrix: a table of patterns of names and ranks, beside the one rank of all the others.

A pattern is compared with the whole name of a linear, as in `layers.0.attention.q_proj`: * stands for any letters, dots
included, ? for one of them and [13] for either of two. Of several that match, the last one in the table decides.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from model.errors import UserError
from model.schema import Frozen

Table = tuple[tuple[str, int], ...]
"""A table of TOML whose order counts: what stands before and after each equals sign."""

WILD = frozenset("*?[")

AnyLinear = TypeVar("AnyLinear", bound=Frozen)


def _pairs(given: Any) -> Any:
    """The table as pairs. A name without quotes, which TOML takes for tables within each other, is put together."""
    if isinstance(given, dict):
        pairs: list[Any] = []
        for name, value in given.items():
            inner = _pairs(value) if isinstance(value, dict) else [("", value)]
            pairs += [(f"{name}.{rest}" if rest else name, rank) for rest, rank in inner]
    elif isinstance(given, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in given):
        pairs = list(given)
    else:
        raise ValueError(f'{given!r:.100} is no table of names and ranks; for example {{ "layers.0.*" = 64 }}')
    for name, rank in pairs:
        if type(rank) is not int or rank < 1:
            raise ValueError(f"{name!r:.100} = {rank!r:.100} is no rank; give an integer of at least 1")
    return tuple(pairs)


RankTable = Annotated[Table, BeforeValidator(_pairs)]


@lru_cache(maxsize=4096)
def deciding(table: Table, name: str) -> tuple[str, int] | None:
    """Return the pattern that gives `name` its rank, and the rank; None where no pattern matches."""
    return next((pair for pair in reversed(table) if _matches(name, pair[0])), None)


def _matches(name: str, pattern: str) -> bool:
    # A table may name hundreds of linears in full, more patterns than fnmatch keeps.
    return fnmatchcase(name, pattern) if WILD.intersection(pattern) else name == pattern


def rank_of(config: Any, name: str) -> int:
    """Return the rank that `config`, a table with the keys `rank` and `ranks`, gives the linear `name`."""
    found = deciding(config.ranks, name)
    return int(found[1] if found else config.rank)


def linear_at(config: AnyLinear, name: str) -> AnyLinear:
    """Return the configuration of the linear `name` alone: `config` with its rank, and without a table of them."""
    if not getattr(config, "ranks", ()):
        return config
    return config.model_copy(update={"rank": rank_of(config, name), "ranks": ()})


def same_linears(one: Any, other: Any, names: Iterable[str]) -> bool:
    """Whether two configurations make the same of every linear of `names`, whichever tables say so."""
    return all(linear_at(one, name) == linear_at(other, name) for name in names)


def require_ranks_fit(config: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """UserError where linear.ranks gives a linear more than its smaller side; `shapes` are (in, out) by name."""
    for name, (n_in, n_out) in shapes.items():
        found, most = deciding(config.ranks, name), min(n_in, n_out)
        if found and found[1] > most:
            raise UserError(
                f"linear.ranks {found[0]!r} = {found[1]} exceeds the smaller side of {name} ({n_out} x {n_in}); give "
                f"at most {most}"
            )


def require_patterns_used(key: str, table: Table, names: Iterable[str]) -> None:
    """UserError for a pattern of the table `key` that matches none of `names`, or none that no later one matches."""
    found = list(names)
    used = {pair[0] for name in found if (pair := deciding(table, name))}
    for pattern, _ in table:
        if pattern in used:
            continue
        if any(_matches(name, pattern) for name in found):
            raise UserError(
                f"{key} {pattern!r} has no effect: patterns after it match all that it does, and the last one decides; "
                "put it after them, or leave it out"
            )
        looks = f"names look like {found[0]}" if found else "no matrix has a rank here"
        raise UserError(f"{key} {pattern!r} matches nothing; {looks}, and * stands for any part of one")
