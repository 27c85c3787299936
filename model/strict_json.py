"""JSON of strangers: whatever the bytes are, plain finite data come out of them or a ValueError that says why not."""

import json
import math
from pathlib import Path
from stat import S_ISREG
from typing import Any, NoReturn

LARGEST = 64 * 2**20
"""Bytes of the largest JSON file that is read; a larger one would be held in memory several times."""


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 `data`; ValueError for anything else, NaN, infinity and endless nesting among it."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file `path`; ValueError as `parse_object`, OSError where it cannot be read."""
    return parse_object(read_plain(path, LARGEST))


def read_plain(path: Path, largest: int) -> bytes:
    """The bytes of a file; ValueError for one of more than `largest`, and for what is no file (a pipe never ends)."""
    about = path.stat()
    if not S_ISREG(about.st_mode):
        raise ValueError("it is no plain file")
    if about.st_size > largest:
        raise ValueError(f"it has {about.st_size:,} bytes, more than the {largest:,} that such a file may have")
    return path.read_bytes()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which is too large")
    return value
