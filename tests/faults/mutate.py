"""Seeded mutations of bytes, and of data that JSON and TOML describe."""

import copy
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**62, 2**63, -(2**63), 10**40, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308),
    *(
        "",
        "a",
        "\0",
        "../../evil",
        "/etc/passwd",
        "x" * 300,
        "\u00ed\u00a0",
    ),
    *([], {}, [[]], [1, 2], {"a": 1}, ["x"], [{}], [None]),
)
"""Values that a field may be given."""

HUGE = (float("nan"), float("inf"), float("-inf"))
"""Numbers that JSON has no words for and Python writes all the same."""


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, set, cut, insert and repeat a few stretches."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 3, 20, 200))
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.choice((0, 255, 34, 91, 123, 45, 57, rng.randrange(256)))
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = rng.randbytes(length)
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
        else:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
    return bytes(changed)


def mutated_data(rng: random.Random, data: Any, strange: tuple[Any, ...] = STRANGE) -> Any:
    """A copy of nested dicts and lists in which a few values are replaced, shifted, dropped, added or moved."""
    changed = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            break
        owner, key = rng.choice(places)
        value, kind = owner[key], rng.randrange(6)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[rng.choice(("", "unknown", "step", "x" * 300, key + "_"))] = value
        elif kind == 2 and type(value) in (int, float):
            owner[key] = rng.choice((value + 1, -value, value * 2**20, value / 3, value * 10**30))
        elif kind == 3:
            other, place = rng.choice(places)
            owner[key] = copy.deepcopy(other[place])
        elif kind == 4 and isinstance(owner, list):
            owner.append(copy.deepcopy(value))
        else:
            owner[key] = copy.deepcopy(rng.choice(strange))
    return changed


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in `data`."""
    found = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        found.append((data, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found
