"""The base class of the settings of methods."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, WithJsonSchema, model_validator

from adapt import plain

METHOD_SETTINGS = {"type": "object", "title": "a method's name and settings"}  # in a schema of recipes
MethodSettings = Annotated[dict[str, Any], WithJsonSchema(METHOD_SETTINGS)]


class MethodConfig(BaseModel):
    """The settings of a method, which are written into its adapter files. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        plain.check(value)
        return value
