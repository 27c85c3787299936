"""The base of every configuration class."""

from typing import ClassVar

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
