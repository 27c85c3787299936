"""Validation errors as sentences: the dotted key, what is wrong, and the nearest valid name."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from pretrain.config.schema import Config
from pretrain.config.types import members, table_type


def explain(error: ValidationError, raw: dict[str, Any]) -> str:
    """One sentence per error, joined by semicolons."""
    return "; ".join(_sentence(item, raw) for item in error.errors(include_url=False))


def _sentence(item: Any, raw: dict[str, Any]) -> str:
    path = list(item["loc"])
    section = str(path[0]) if path else ""
    named = members(section)
    if len(path) > 1 and path[1] in named:  # pydantic puts the union's tag into the path
        del path[1]
    key = ".".join(str(part) for part in path)
    kind = item["type"]
    if kind == "extra_forbidden":
        return _unknown_key(key, path, raw)
    if kind == "union_tag_invalid" or (kind == "literal_error" and path[1:] == ["name"]):
        tag = item["ctx"].get("tag", item["input"])
        return f"{section}.name: unknown name {tag!r}; one of {', '.join(named)}{_nearest(str(tag), named)}"
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        return f"{key}: {message}" if key and not message.startswith(section + ".") else message
    message = item["msg"][0].lower() + item["msg"][1:]
    return f"{key}: {message}, got {item['input']!r}"


def _unknown_key(key: str, path: list[Any], raw: dict[str, Any]) -> str:
    section, unknown = str(path[0]), str(path[-1])
    if len(path) == 1:
        return f"{key}: unknown table{_nearest(unknown, Config.model_fields)}"
    owner = table_type(section, raw.get(section, {}))
    allowed = owner.model_fields if owner else {}
    name = raw.get(section, {}).get("name")
    whose = f"not a key of {section} {name!r}" if name else "unknown key"
    return f"{key}: {whose}{_nearest(unknown, allowed)}"


def _nearest(word: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; it knows {', '.join(names)}"
