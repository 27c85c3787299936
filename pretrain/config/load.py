"""TOML file + `--section.key=value` overrides -> a validated `Config`, or one sentence that says what to mend."""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.errors import UserError
from pretrain.config.explain import explain
from pretrain.config.plain import parse, read_toml, require_plain, shown
from pretrain.config.schema import Config
from pretrain.config.tables import MixtureSource, is_table, members, table_type


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the file `path` (None: all defaults) with `--section.key=value` texts laid over it.

    Raises UserError for a file that cannot be read, an unknown key, a wrong type or values that do not fit together.
    """
    raw = read_toml(Path(path)) if path is not None else {}
    # `--section.name=…` decides which keys its section has, so it is applied before them.
    for argument in sorted(overrides, key=lambda argument: not argument.partition("=")[0].endswith(".name")):
        _override(raw, argument)
    return validate(raw)


def load_recorded(path: str | Path, most_layers: int | None = None) -> Config:
    """The configuration that a run has written into its folder or a checkpoint.

    Earlier versions took any value of a key that the optimizer ignores, and wrote it down; it is not read. UserError
    for one whose model has more than `most_layers`, before anything is made of them.
    """
    try:
        raw = read_toml(Path(path))
        if most_layers is not None:
            _require_few_layers(raw, most_layers, path)
        for section, table in raw.items():
            owner = table_type(section, table) if isinstance(table, dict) else None
            for key in owner.ignored & table.keys() if owner else ():
                del table[key]
        return validate(raw)
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a configuration") from None
    except (ValueError, OverflowError) as error:  # of a number with too many digits
        raise UserError(f"{path}: holds a number that is none of a configuration ({error})") from None


def _require_few_layers(raw: dict[str, Any], most: int, path: str | Path) -> None:
    """UserError where the model, or one that it grows from, has more than `most` layers."""
    tables = [raw.get(name) for name in ("model", "growth")]
    model, growth = (table if isinstance(table, dict) else {} for table in tables)
    small = growth.get("layers", [])
    for layers in (model.get("n_layers", 0), *(small if isinstance(small, list) else ())):
        if type(layers) is int and layers > most:
            raise UserError(f"{path}: a model of {layers} layers, of which the tensors beside it are no part")


def validate(raw: dict[str, Any]) -> Config:
    """A `Config` from plain data; `name` of a table may be left out where the default member is meant."""
    require_plain(raw)
    for section, field in Config.model_fields.items():
        table = raw.get(section)
        if isinstance(table, dict) and "name" in type(field.default).model_fields:
            table.setdefault("name", field.default.name)
    try:
        return Config.model_validate(tuples(raw))
    except ValidationError as error:
        raise UserError(explain(error, raw)) from None


def _override(raw: dict[str, Any], argument: str) -> None:
    key, equals, text = argument.removeprefix("--").partition("=")
    section, _, name = key.partition(".")
    if not (argument.startswith("--") and equals and name):
        raise UserError(f"{shown(argument)}: expected --section.key=value, for example --optimizer.lr=1e-3")
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise UserError(f"{shown(section)}: is a value in the file, expected a table [{section}]")
    if name == "name":
        _switch_member(section, table, text)
    owner = table_type(section, table)
    inner, dot, pattern = name.replace('"', "").partition(".")
    if dot and any(is_table(member.model_fields.get(inner)) for member in members(section).values()):
        pairs = table.get(inner, {})
        if not isinstance(pairs, dict):
            raise UserError(f"{section}.{inner}: is a value in the file, expected a table [{section}.{inner}]")
        table[inner] = {name: rank for name, rank in pairs.items() if name != pattern} | {pattern: literal(key, text)}
        return
    if section == "data" and name.startswith("mixture."):  # a table of tables
        table, name, owner = *_source_of(table, key, name), MixtureSource
    field = owner.model_fields.get(name) if owner else None
    table[name] = text if field and field.annotation is str else literal(key, text)


def _source_of(data: dict[str, Any], key: str, name: str) -> tuple[dict[str, Any], str]:
    """The table of the corpus that `mixture.<corpus>.<key>` is about, and the key in it."""
    parts = name.split(".")
    if len(parts) != 3:
        raise UserError(f"{shown(key)}: expected --data.mixture.NAME.path=DIR or --data.mixture.NAME.weight=W")
    for part in parts[:2]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"{shown(key)}: {part} is a value in the file, expected a table")
    return data, parts[2]


def literal(key: str, text: str) -> Any:
    """The TOML value that `text` spells; a bare word is a string (names and choices need no quotes)."""
    try:
        parsed = parse(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UserError(f"{shown(key)}: {shown(text)} is no TOML value: {error}") from None
    if set(parsed) != {"value"}:
        raise UserError(f"{shown(key)}: {shown(ascii(text))} is not one TOML value")
    return parsed["value"]


def _switch_member(section: str, table: dict[str, Any], name: str) -> None:
    """Drop the file's keys that the newly named member does not have or ignores, and say which."""
    member = members(section).get(name)
    if member is None or table.get("name", name) == name:
        return
    dropped = [key for key in table if key not in member.model_fields or key in member.ignored]
    for key in dropped:
        del table[key]
    if dropped:
        print(f"{section}.name={name} drops from the file: {', '.join(dropped)}", file=sys.stderr)


def tuples(value: Any) -> Any:
    """TOML arrays arrive as lists; the fields are tuples, because a configuration is immutable."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
