"""The JSON Schema of a recipe's file, for editors: keys and values of each section, and of each method its own."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

from adapt import methods
from adapt.methods.base.config import METHOD_SETTINGS
from adapt.recipe import Recipe


def recipe_schema() -> dict[str, Any]:
    """The schema, of draft 2020-12, for recipes of all known methods, those of other packages and of plug-ins too.

    It knows keys, kinds of values and their bounds. What two keys must be together is told where a recipe is read.
    """
    schema = create_model("Recipe", __base__=_File, method=(_any_method(), ...)).model_json_schema()
    keys, parts = schema["properties"], schema["$defs"]
    parts["Method"], keys["method"] = keys["method"], {"$ref": "#/$defs/Method"}
    del parts["DataSection"]["required"]  # a command's --data may say on what
    of_recipes = {key: value for key, value in keys.items() if key not in _File.__annotations__}
    keys["on"]["additionalProperties"] = {
        "type": "object",
        "properties": of_recipes | {"method": {"type": "object"}},  # which method that is, stands elsewhere
        "additionalProperties": False,
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | _referring(schema) | {"required": ["method"]}


class _File(Recipe):
    """What a file has beside a recipe's own keys; see `adapt.recipe.file`."""

    on: dict[str, dict[str, Any]] | None = None
    """What is set otherwise, by data set; `own` is for all data that is not known by name."""
    expected: dict[str, str] | None = None
    """The papers' figures by data set, for people."""
    variants: dict[str, dict[str, Any]] | None = None
    """Settings such as `method.train: true`, by a name of their own, for `adapt recommend`."""
    compared: bool = False
    """Whether `adapt recommend` compares it by default though its steps pass through a tower."""
    preferred: str | None = None
    """The variant that `adapt recommend` takes where no other method is better beyond the noise."""


def _any_method() -> Any:
    """One of all methods' settings, told by `name`."""
    each = [_named(name, methods.find(name).Config) for name in methods.names()]
    return Annotated[reduce(or_, each), Field(discriminator="name")]


def _named(name: str, config: type[BaseModel]) -> type[BaseModel]:
    only: Any = Literal[name]
    return create_model(name, __base__=config, name=(only, ...))


def _referring(node: Any) -> Any:
    """`node` with the settings of any method where another one's settings hold such, as those of compose do."""
    if node == METHOD_SETTINGS:
        return {"$ref": "#/$defs/Method"}
    if isinstance(node, dict):
        return {key: _referring(value) for key, value in node.items()}
    return [_referring(each) for each in node] if isinstance(node, list) else node
