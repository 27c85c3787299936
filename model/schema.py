"""The base of every configuration class, and what is wrong with a value in the words of the file that holds it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Strict, immutable configuration data: unknown keys, wrong types, NaN and infinity are errors.

    A string below a field is its documentation, with its unit; `sparlow train --print-config` prints it.
    """

    ignored: ClassVar[frozenset[str]] = frozenset()
    """Keys that a member of several takes from their common class though they have no effect on it: a configuration
    must not set them, and it is written without them."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


EXPECTED = {
    "missing": "a value (it is missing)",
    "bool_type": "true or false",
    "int_type": "a valid integer",
    "int_parsing_size": "a smaller number",
    "float_type": "a valid number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "string_too_short": "text of at least {min_length} character",
    "tuple_type": "a list in brackets",
    "too_short": "a list of at least {min_length} item",
    "too_long": "a list of at most {max_length} items",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table",
}
"""By the kind of an error, what was expected; in braces what the error says besides."""


def expected(error: Mapping[str, Any]) -> str:
    """What one error of pydantic's expected; pydantic's own words for a kind that EXPECTED lacks."""
    words = EXPECTED.get(error["type"])
    if words is None:
        return str(error["msg"][0].lower() + error["msg"][1:])
    return f"expected {words.format(**{key: _plain(value) for key, value in error.get('ctx', {}).items()})}"


def _plain(value: Any) -> Any:
    """A bound as a person writes it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return "true" if value == "True" else value
