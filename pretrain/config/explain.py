"""What to say of a wrong table, key, value or argument: the dotted key, what is wrong, and what would be right."""

import datetime
import difflib
import shlex
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from model.schema import expected
from pretrain.config.literals import as_toml
from pretrain.config.plain import shown
from pretrain.config.tables import MixtureSource, Tables, members, table_type, users

MIXTURE = '{ code = { path = "data/code", weight = 1.0 } }'


def explain(error: ValidationError, raw: dict[str, Any]) -> str:
    """One sentence per error, joined by semicolons."""
    return "; ".join(dict.fromkeys(_sentence(item, raw) for item in error.errors(include_url=False)))


def _sentence(item: Any, raw: dict[str, Any]) -> str:
    path = list(item["loc"])
    section = str(path[0]) if path else ""
    named = members(section)
    if len(path) > 1 and path[1] in named:  # pydantic puts the union's tag into the path
        del path[1]
    key = ".".join(str(part) for part in path)
    kind = item["type"]
    if path[:2] == ["data", "mixture"] and kind not in ("dict_type", "value_error"):
        return _wrong_source(path, item)
    if kind == "extra_forbidden":
        return _unknown_key(key, path, raw)
    if kind == "union_tag_invalid" or (kind == "literal_error" and path[1:] == ["name"]):
        tag = item["ctx"].get("tag", item["input"])
        close = difflib.get_close_matches(str(tag)[:100], named, 1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return f"{section}.name: unknown name {shown(repr(tag))}; one of {', '.join(named)}{meant}"
    if kind == "value_error":
        message = str(item["ctx"]["error"])
        return f"{key}: {message}" if key and not message.startswith(section + ".") else message
    if len(path) == 1:
        return f"{key}: {expected(item)} [{key}], got {shown(repr(item['input']))}"
    return _wrong_value(path, item, raw)


def _wrong_value(path: list[Any], item: Any, raw: dict[str, Any]) -> str:
    """The key, what it takes, what it got, and an example in the form that TOML and the command line have."""
    section, name = str(path[0]), str(path[1])
    owner = table_type(section, raw.get(section, {}))
    assert owner is not None, "an unknown section or name is another kind of error"
    field = owner.model_fields[name]
    example = as_toml(field.default)
    key, takes, got = f"{section}.{name}", expected(item), item["input"]
    parts = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is tuple else ()
    if parts and item["type"] in ("tuple_type", "missing", "too_short", "too_long"):
        kind = "texts" if parts[0] is str else "numbers"
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        takes = takes if item["type"] == "too_short" else f"expected a list of {count}{kind} in brackets"
    elif len(path) > 2:
        key += f".{path[2]}"
    if field.default == {}:
        example = MIXTURE
    elif field.default in ((), ""):
        example = '["one", "two"]' if str in parts else "[1, 2]" if parts else '"text"'
    return f"{key}: {takes}, got {shown(_as_given(got))}; for example {name} = {example}"


def _as_given(value: Any) -> str:
    """A value as it was written: lists, which arrive as tuples, in brackets, and dates without Python's name."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return f"[{', '.join(map(_as_given, value))}]" if isinstance(value, tuple) else repr(value)


def _wrong_source(path: list[Any], item: Any) -> str:
    """The sentence for a corpus of a mixture."""
    key = shown(".".join(map(str, path)))
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(path[-1]), MixtureSource.model_fields)}"
    return f"{key}: {expected(item)}, got {shown(_as_given(item['input']))}; for example mixture = {MIXTURE}"


def _unknown_key(key: str, path: list[Any], raw: dict[str, Any]) -> str:
    section, unknown = str(path[0]), str(path[-1])
    if len(path) == 1:
        return f"{key}: unknown table{nearest(unknown, Tables.model_fields)}"
    owner = table_type(section, raw.get(section, {}))
    name, others = raw.get(section, {}).get("name"), users(section, unknown)
    whose = f"not a key of {section} {name!r}" if name or others else "unknown key"
    fix = f"; it is for {', '.join(others)}" if others else nearest(unknown, owner.model_fields if owner else {})
    return f"{key}: {whose}{fix}"


def nearest(word: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(word, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; it knows {', '.join(names)}"


def without_equals(arguments: Sequence[str]) -> str | None:
    """The sentence for the first key whose value follows after a space, or None: `--train.seq_len 64`."""
    for at, word in enumerate(arguments[:-1]):
        key, equals, text = word.partition("=")
        if not _is_key(key) or text:
            continue
        after = [value for value in arguments[at + 1 : at + 3] if value != "="][:1]
        if after and not after[0].startswith("--") and (not equals or not after[0].endswith(".toml")):
            value = after[0] if equals else after[0].removeprefix("=")
            return f"{key} {after[0]}: write {key}={shlex.quote(value)}"
    return None


def unknown(word: str, arguments: Sequence[str]) -> str:
    """The sentence for `word`, one of `arguments` that neither the command nor the configuration knows."""
    before = arguments[arguments.index(word) - 1] if word in arguments else ""
    key, equals, text = word.lstrip("-").partition("=")
    section, dot, name = key.partition(".")
    if dot and section in Tables.model_fields and name:
        return f"{word}: write --{key}={shlex.quote(_value(equals, text, word, arguments))}"
    if not word.startswith("-") and _is_key(before.partition("=")[0]):
        together = shlex.quote(f"{before} {word}")
        return f"{word}: unknown argument; if it belongs to the value before it, quote both: {together}"
    plain = key.replace("-", "_")
    keys = [f"--{table}.{name}" for table in Tables.model_fields for name in _names(table) if name == plain]
    if word.startswith("-") and keys:
        value = shlex.quote(_value(equals, text, word, arguments))
        return f"{word}: unknown argument; did you mean {' or '.join(f'{one}={value}' for one in keys)}?"
    return f"{word}: unknown argument"


def _is_key(text: str) -> bool:
    return text.startswith("--") and "." in text


def _value(equals: str, text: str, word: str, arguments: Sequence[str]) -> str:
    """What is given after the equals sign, or else as the next argument."""
    if equals:
        return text
    after = arguments[arguments.index(word) + 1 :][:1]
    return after[0] if after and not after[0].startswith("--") else "VALUE"


def _names(section: str) -> list[str]:
    """The keys of a table, whichever of its members is chosen, but `name`."""
    table = table_type(section, {})
    tables = list(members(section).values()) or ([table] if table else [])
    return list(dict.fromkeys(key for table in tables for key in table.model_fields if key != "name"))
