"""The base class of the settings of methods."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import WithJsonSchema, model_validator

from adapt.common import plain
from adapt.common.validation import StrictModel

METHOD_SETTINGS = {"type": "object", "title": "a method's name and settings"}  # in a schema of recipes
MethodSettings = Annotated[dict[str, object], WithJsonSchema(METHOD_SETTINGS)]


class MethodConfig(StrictModel):
    """The settings of a method, which are written into its adapter files. Unknown keys are errors."""

    set_by_training: ClassVar[frozenset[str]] = frozenset()
    """Settings that training sets for its own data, in which it may differ from an adapter that it starts from."""

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        plain.check(value)
        return value
