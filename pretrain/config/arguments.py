"""What to write in place of an argument that is no `--section.key=value`, as one sentence."""

import shlex
from collections.abc import Sequence

from pretrain.config.schema import Config
from pretrain.config.types import members, table_type


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
    if dot and section in Config.model_fields and name:
        return f"{word}: write --{key}={shlex.quote(_value(equals, text, word, arguments))}"
    if not word.startswith("-") and _is_key(before.partition("=")[0]):
        together = shlex.quote(f"{before} {word}")
        return f"{word}: unknown argument; if it belongs to the value before it, quote both: {together}"
    keys = [f"--{table}.{name}" for table in Config.model_fields for name in _names(table) if name == _plain(key)]
    if word.startswith("-") and keys:
        value = shlex.quote(_value(equals, text, word, arguments))
        return f"{word}: unknown argument; did you mean {' or '.join(f'{one}={value}' for one in keys)}?"
    return f"{word}: unknown argument"


def _is_key(text: str) -> bool:
    return text.startswith("--") and "." in text


def _plain(key: str) -> str:
    return key.replace("-", "_")


def _value(equals: str, text: str, word: str, arguments: Sequence[str]) -> str:
    """What is given after the equals sign, or else as the next argument."""
    if equals:
        return text
    after = arguments[arguments.index(word) + 1 :][:1]
    return after[0] if after and not after[0].startswith("--") else "VALUE"


def _names(section: str) -> list[str]:
    """The keys of a table, whichever of its members is chosen, but `name`."""
    tables = [*members(section).values()] or [table for table in [table_type(section, {})] if table]
    return list(dict.fromkeys(key for table in tables for key in table.model_fields if key != "name"))
