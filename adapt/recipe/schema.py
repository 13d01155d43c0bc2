"""The JSON Schema of a recipe file, for editors: the keys and values of each section and of each method."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, cast

from pydantic import Field, create_model

from adapt import methods
from adapt.methods.base.method import METHOD_SETTINGS
from adapt.recipe import Recipe

# classes that are made here have no docstrings in a source file; the search goes through all calls that led here
_UNREAD = {"use_attribute_docstrings": False}


def recipe_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of recipe files for all known methods, including plug-ins.

    The schema covers keys, types and bounds. Constraints between keys are checked when a recipe is read.
    """
    schema = create_model("Recipe", __base__=_File, method=(_any_method(), ...)).model_json_schema()
    keys, parts = schema["properties"], schema["$defs"]
    parts["Method"], keys["method"] = keys["method"], {"$ref": "#/$defs/Method"}
    del parts["DataSection"]["required"]  # --data may give the data
    of_recipes = {key: value for key, value in keys.items() if key not in _File.__annotations__}
    keys["on"]["additionalProperties"] = {
        "type": "object",
        "properties": of_recipes | {"method": {"type": "object"}},  # the method's name is given elsewhere
        "additionalProperties": False,
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**dialect, **{key: _referring(value) for key, value in schema.items()}, "required": ["method"]}


class _File(Recipe):
    """A recipe with the additional keys that a recipe file can have; see `adapt.recipe.file`."""

    on: dict[str, dict[str, object]] | None = None
    """Changes by data set; `own` applies to all data that is not known by name."""
    expected: dict[str, str] | None = None
    """The papers' figures by data set, for people."""
    variants: dict[str, dict[str, object]] | None = None
    """Other settings such as `method.train: true` that `adapt recommend` compares, by name."""
    compared: bool = False
    """Whether `adapt recommend` compares the method by default although its steps pass through a tower."""
    preferred: str | None = None
    """The variant that `adapt recommend` chooses if no other method is better beyond the noise."""


def _any_method() -> Any:
    """Return the union type of all methods' settings, discriminated by `name`."""
    configs = {method.name: method.Config for method in methods.classes()}
    each = [
        create_model(name, __base__=config, __cls_kwargs__=_UNREAD, name=(cast("type[str]", Literal[name]), ...))
        for name, config in configs.items()
    ]
    return Annotated[reduce(or_, each), Field(discriminator="name")]


def _referring(node: object) -> object:
    """Return the schema `node` with references to the settings of a method in place of nested method settings."""
    if node == METHOD_SETTINGS:
        return {"$ref": "#/$defs/Method"}
    if isinstance(node, dict):
        return {key: _referring(value) for key, value in node.items()}
    return [_referring(each) for each in node] if isinstance(node, list) else node
