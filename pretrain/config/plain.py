"""What the data of a configuration must look like before anything is made of it: files and values from strangers."""

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import UserError
from model.lfs import refuse_pointer
from pretrain.machine.files import read_regular

LARGEST_FILE = 1_000_000
"""Bytes; the shipped configurations have 2,000."""
DEEPEST = 8
"""Tables and lists within each other; keys need 3."""
LONGEST_NAME, LONGEST_TEXT, LONGEST_LIST = 64, 100_000, 10_000
PATHS = ("run.dir", "data.path")
LONGEST_FOLDER, LONGEST_PATH = 200, 3500
"""Bytes of one name and of a whole path: what Linux takes, less what a run adds to it."""
STREAMS = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""Pipes that a shell opens itself, as for `<(command)`; any other may wait for a writer for ever."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; UserError for whatever else stands at `path`."""
    try:
        if str(path).startswith(STREAMS) and stat.S_ISFIFO(path.stat().st_mode):
            with path.open("rb") as stream:
                data = stream.read(LARGEST_FILE + 1)
        else:
            data = read_regular(path, LARGEST_FILE + 1)
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such file; configs/ holds the shipped ones") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in a path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{shown(path)}: cannot be read as text ({reason}); give a TOML file") from None
    if len(data) > LARGEST_FILE:
        raise UserError(f"{path}: larger than 1 MB, so it is no configuration; configs/ holds the shipped ones")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    try:
        return parse(text)
    except ValueError as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not valid TOML: {shown(error)}") from None


def parse(text: str) -> dict[str, Any]:
    """The tables that a text in TOML spells. ValueError for any other text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("tables or lists are nested too deeply") from None
    except ValueError as error:  # Python's limit on digits, an impossible date
        long = re.search(r"[0-9_]{4000,}", text)
        where = f" (at line {text.count(chr(10), 0, long.start()) + 1})" if long else ""
        raise ValueError(f"{'a number of thousands of digits' if long else error}{where}") from None


def require_plain(raw: dict[str, Any]) -> None:
    """UserError, with its key, for the first name or value that no configuration can have: too deep, long or large."""
    for section, table in raw.items():
        _require_name(section, "table")
        if not isinstance(table, dict):
            continue
        for name, value in table.items():
            _require_name(name, f"key of [{section}]")
            key = f"{section}.{name}"
            _require_value(key, value)
            for inner, text in _paths(key, value):
                _require_path(inner, text)


def _paths(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """What `value` holds of paths, each with its key."""
    if key in PATHS and isinstance(value, str):
        yield key, value
    if key == "data.mixture" and isinstance(value, dict):
        sources = ((name, source.get("path")) for name, source in value.items() if isinstance(source, dict))
        yield from ((f"{key}.{name}.path", path) for name, path in sources if isinstance(path, str))


def shown(value: object, most: int = 100) -> str:
    """A value for a message, no longer than a reader takes in; what is no character is escaped."""
    text = str(value)
    part = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:most])
    return part if len(text) <= most else f"{part}… ({len(text):,} characters)"


def _require_name(name: str, what: str) -> None:
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"{shown(ascii(name)[1:-1])}: is no {what}; see sparlow train --print-config")


def _require_value(key: str, value: Any) -> None:
    # A stack rather than a recursion: what is too deep for Python is met here first.
    stack = [(value, 2)]
    while stack:
        item, depth = stack.pop()
        if depth > DEEPEST:
            raise UserError(f"{key}: lists or tables are nested more than {DEEPEST} deep; give a plain value")
        if isinstance(item, dict | list):
            if len(item) > LONGEST_LIST:
                raise UserError(f"{key}: a list of {len(item):,} items, of which {LONGEST_LIST:,} are the most")
            values = item.values() if isinstance(item, dict) else item
            stack += [(inner, depth + 1) for inner in values]
            for name in item if isinstance(item, dict) else ():
                _require_name(name, f"key of {key}")
        elif isinstance(item, int) and item.bit_length() > 64:
            raise UserError(f"{key}: a number of {item.bit_length()} bits, expected one of at most 64")
        elif isinstance(item, str):
            _require_text(key, item)


def _require_text(key: str, text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{key}: a text of {len(text):,} characters, of which {LONGEST_TEXT:,} are the most")
    if "\0" in text:
        raise UserError(f"{key}: {shown(ascii(text))} has a NUL character; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}: {shown(ascii(text))} is no text in UTF-8; choose another") from None


def _require_path(key: str, text: str) -> None:
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > LONGEST_FOLDER or len(os.fsencode(text)) > LONGEST_PATH:
        raise UserError(
            f"{key}: {shown(text, 60)} is longer than a path can be (at most {LONGEST_FOLDER} bytes for a folder's "
            f"name, {LONGEST_PATH} in all); choose a shorter one"
        )
