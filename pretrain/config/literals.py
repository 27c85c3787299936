"""Values as TOML spells them."""

import json
import re
from typing import Any

from model.schema import Frozen


def as_toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, tuple):
        if value and all(isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in value):
            return f"{{ {', '.join(f'{as_toml(name)} = {as_toml(number)}' for name, number in value)} }}"
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict | Frozen):
        items = value.items() if isinstance(value, dict) else ((key, item) for key, item in value)
        inner = ", ".join(f"{_toml_key(key)} = {as_toml(item)}" for key, item in items)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
