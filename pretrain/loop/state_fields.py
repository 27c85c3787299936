"""What every field of a TrainState may hold, one line each: a checkpoint may come from anyone."""

import math
import re
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from kernels.sparse_low_rank_linear.choice import Choice
from model.errors import UserError
from pretrain.config.tables import SOURCE_NAME

COUNT = 2**62
"""No count reaches this, and every one below it can be counted on without an overflow of int64."""

LARGEST_WINDOW = 10_000
"""Values in a window of the guard, at most."""

REASONS = frozenset(f"{what}_{how}" for what in ("loss", "gradient") for how in ("not_finite", "spike")) | {
    "partly_applied"
}
"""Why a step may be skipped or gone back from (pretrain/loop/guard.py)."""


class Kind(NamedTuple):
    """A kind of value."""

    holds: Callable[[Any], bool]
    words: str
    """What it is, for a sentence."""


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < COUNT


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e100 and math.isfinite(value)


def _is_stage(value: Any) -> bool:
    """Whether it is what `TrainState.this_stage` gives."""
    return (
        isinstance(value, dict)
        and value.keys() == {"n_layers", "steps", "tokens", "flops", "flops_dense_equivalent"}
        and _is_count(value["n_layers"], least=1)
        and all(_is_count(value[key]) for key in ("steps", "tokens"))
        and all(_is_amount(value[key]) for key in ("flops", "flops_dense_equivalent"))
    )


def _is_origin(value: Any) -> bool:
    """Whether it is what `pretrain.loop.origin.begin` records, or empty."""
    texts = ("run", "checkpoint", "config_hash", "manifest_sha256")
    return value == {} or (
        isinstance(value, dict)
        and value.keys() == {*texts, "step", "tokens_seen", "state"}
        and all(isinstance(value[key], str) and len(value[key]) <= 255 and value[key].isprintable() for key in texts)
        and re.fullmatch(r"step-\d{8,}(-grown)?(-rewound[1-9]\d{0,8})?", value["checkpoint"]) is not None
        and _is_count(value["step"])
        and _is_count(value["tokens_seen"])
        and value["state"] in ("weights", "all")
    )


def _is_record(value: Any) -> bool:
    """Whether it is what `pretrain.engine.kernel_choices.decide` records, or empty."""
    if not isinstance(value, dict) or value.keys() - {"device", "shapes"}:
        return False
    shapes = value.get("shapes", {})
    if not value or not isinstance(shapes, dict) or value.get("device") not in ("cpu", "cuda"):
        return value == {}
    names = all(re.fullmatch(r"[1-9]\d{0,8}x[1-9]\d{0,8} rank (0|[1-9]\d{0,8})", name) for name in shapes)
    return names and all(_is_choice(choice) for choice in shapes.values())


def _is_choice(value: Any) -> bool:
    types = typing.get_type_hints(Choice)
    return (
        isinstance(value, dict)
        and value.keys() == {field.name for field in fields(Choice)}
        and all(
            type(value[name]) is bool if kind is bool else value[name] in typing.get_args(kind)
            for name, kind in types.items()
        )
    )


def _is_window(value: Any) -> bool:
    return type(value) is list and len(value) <= LARGEST_WINDOW and all(map(_is_finite, value))


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _are_reasons(value: Any) -> bool:
    """Whether it is counts by REASONS."""
    return isinstance(value, dict) and value.keys() <= REASONS and all(map(_is_count, value.values()))


def _are_sources(value: Any) -> bool:
    """Whether it is what `TrainState.count_sources` sums up."""
    return isinstance(value, dict) and all(
        isinstance(seen, dict)
        and SOURCE_NAME.fullmatch(name) is not None
        and seen.keys() == {"samples", "tokens"}
        and all(map(_is_count, seen.values()))
        for name, seen in value.items()
    )


def _is_rewind(value: Any) -> bool:
    """Whether it is what `pretrain.loop.rewind` records of one."""
    counts = ("step", "to", "cursor", "cursor_after")
    return (
        isinstance(value, dict)
        and value.keys() == {*counts, "reason", "value"}
        and all(_is_count(value[key]) for key in counts)
        and value["reason"] in REASONS
        and isinstance(value["value"], str)
        and len(value["value"]) <= 32
    )


count = Kind(_is_count, "a count")
amount = Kind(_is_amount, "a finite number of at least 0")
flag = Kind(lambda value: type(value) is bool, "true or false")
stages = Kind(lambda value: type(value) is list and all(map(_is_stage, value)), "a list of stages that ended")
origin = Kind(_is_origin, "the record of another run's checkpoint")
window = Kind(_is_window, "a list of finite numbers")
reasons = Kind(_are_reasons, "counts by reason")
rewinds = Kind(lambda value: type(value) is list and all(map(_is_rewind, value)), "a list of ways back")
sources = Kind(_are_sources, "samples and tokens by the name of a corpus")
record = Kind(_is_record, "a record of kernels")

FIELDS: dict[str, Kind] = {
    "step": count,
    "cursor": count,
    "tokens_seen": count,
    "sources": sources,
    "skipped_steps": count,
    "consecutive_skips": count,
    "skips": reasons,
    "losses": window,
    "grad_norms": window,
    "spikes": count,
    "rewinds": rewinds,
    "updates": count,
    "flops": amount,
    "flops_dense_equivalent": amount,
    "evaluation_due": flag,
    "stage": count,
    "stage_start": count,
    "grown": stages,
    "origin": origin,
    "train_seconds": amount,
    "kernels": record,
}
"""By field, what it may hold."""


def require_fields(data: dict[str, Any]) -> None:
    """UserError for the first field of `data`, which has all of FIELDS, that holds something else."""
    for name, kind in FIELDS.items():
        if not kind.holds(data[name]):
            raise UserError(
                f"state.json: {name} is {repr(data[name])[:60]}, expected {kind.words}; no version of Sparlow wrote "
                "this, use another checkpoint"
            )


def require_sense(data: dict[str, Any]) -> None:
    """UserError where fields that hold what they may contradict each other."""
    grown = sum(stage["tokens"] for stage in data["grown"])
    for wrong, what in (
        (data["consecutive_skips"] > data["skipped_steps"], "consecutive_skips is more than skipped_steps"),
        (data["stage_start"] > data["step"], "stage_start is more than step"),
        (
            sum(seen["tokens"] for seen in data["sources"].values()) > data["tokens_seen"],
            "tokens_seen is less than the corpora in sources have given",
        ),
        (grown > data["tokens_seen"], "tokens_seen is less than the stages in grown have seen"),
    ):
        if wrong:
            raise UserError(f"state.json: {what}; no version of Sparlow wrote this, use another checkpoint")
