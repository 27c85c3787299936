"""The base of every configuration class."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Strict, immutable configuration data: unknown keys, wrong types, NaN and infinity are errors.

    A string below a field is its documentation, with its unit; `sparlow train --print-config` prints it.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
