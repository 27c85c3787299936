"""What the schema allows where: the classes behind a table and the type behind a key."""

import typing
from typing import Any

from pydantic import BaseModel

from pretrain.config.schema import Config


def members(section: str) -> dict[str, type[BaseModel]]:
    """The classes that a table with `name` may be, by name; {} for other tables."""
    field = Config.model_fields.get(section)
    if field is None:
        return {}
    candidates = typing.get_args(field.annotation) or (field.annotation,)
    return {c.model_fields["name"].default: c for c in candidates if "name" in getattr(c, "model_fields", {})}


def table_type(section: str, table: dict[str, Any]) -> type[BaseModel] | None:
    """The class that validates `table` of `section`; None when there is no such section or name."""
    field = Config.model_fields.get(section)
    if field is None:
        return None
    named = members(section)
    if not named:
        return typing.cast(type[BaseModel], field.annotation)
    return named.get(table.get("name", field.default.name))


def field_type(section: str, key: str, table: dict[str, Any]) -> Any:
    """The annotation of `section.key`, or None when there is no such key."""
    owner = table_type(section, table)
    field = owner.model_fields.get(key) if owner else None
    return field.annotation if field else None
