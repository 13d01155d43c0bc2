"""The JSON Schema of recipes: it takes all that ships, and flags what no recipe may hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pages
import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from adapt import methods
from adapt.recipe.file import _parsed
from adapt.recipe.schema import recipe_schema
from adapt.recipe.shipped import shipped

_RECIPE: dict[str, Any] = {"method": {"name": "coop", "n_ctx": 4}, "data": {"source": "emoji"}, "train": {"epochs": 2}}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def _deepest(errors: list[ValidationError]) -> Iterator[ValidationError]:
    for error in errors:
        yield error
        yield from _deepest(list(error.context or ()))


def _as_editors_read(text: str) -> Any:
    """Keys are texts to them."""
    return json.loads(json.dumps(_parsed(text)))


@pytest.mark.parametrize("name", shipped())
def test_it_takes_every_shipped_recipe(validator: Draft202012Validator, name: str) -> None:
    validator.validate(_as_editors_read(shipped()[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", methods.names())
def test_it_knows_each_methods_settings(validator: Draft202012Validator, name: str) -> None:
    example = {"name": name, **methods.find(name).example}
    validator.validate(_as_editors_read(yaml.safe_dump(json.loads(json.dumps({"method": example})))))
    assert not validator.is_valid({"method": example | {"no_such_setting": 1}})


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"name": "lora", "projections": "qkvo"}},
        {"train": {"epochs": {"1": 50, "16": 200}}},
        {"train": {"epochs": 1, "terms": None}},
        {"on": {"own": {"train": {"augment": "none"}, "method": {"n_ctx": 2}}}, "compared": True},
        {"method": {"name": "compose", "methods": [{"name": "das", "skip": 2}, {"name": "lora"}]}},
        {"data": {"shots": None}},
    ],
)
def test_it_takes_what_a_recipe_may_hold(validator: Draft202012Validator, change: dict[str, Any]) -> None:
    validator.validate(_RECIPE | change)


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"train": {"epoch": 2}}, ["train"], "'epoch' was unexpected"),
        ({"sead": 1}, [], "'sead' was unexpected"),
        ({"data": {"source": "emoji", "shot": 4}}, ["data"], "'shot' was unexpected"),
        ({"method": {"name": "coop", "n_ctxt": 4}}, ["method"], "'n_ctxt' was unexpected"),
        ({"method": {"name": "coop", "n_ctx": 0}}, ["method", "n_ctx"], "0 is less than the minimum of 1"),
        ({"method": {"name": "coop", "class_position": "back"}}, ["method", "class_position"], "'back' is not one of"),
        ({"train": {"epochs": 1, "optimizer": "adagrad"}}, ["train", "optimizer"], "'adagrad' is not one of"),
        ({"on": {"emoji": {"train": {"epoch": 1}}}}, ["on", "emoji", "train"], "'epoch' was unexpected"),
        (
            {"method": {"name": "compose", "methods": [{"name": "lora", "rang": 2}, {"name": "das"}]}},
            ["method", "methods", 0],
            "'rang' was unexpected",
        ),
    ],
)
def test_it_flags_what_no_recipe_may_hold(
    validator: Draft202012Validator, change: dict[str, Any], path: list[str | int], message: str
) -> None:
    found = list(_deepest(list(validator.iter_errors(_RECIPE | change))))
    assert [error for error in found if list(error.absolute_path) == path and message in error.message]


@pytest.mark.parametrize("method", [{}, {"name": "cop"}, {"n_ctx": 4}])
def test_it_flags_a_method_that_there_is_not(validator: Draft202012Validator, method: dict[str, Any]) -> None:
    assert not validator.is_valid({"method": method})
    assert not validator.is_valid({"train": {"epochs": 2}})


def test_ones_own_method_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(methods.ZeroShot):
        name = "mine"

    with methods.known(Mine):
        assert "mine" in recipe_schema()["$defs"]["Method"]["discriminator"]["mapping"]


def test_the_recipe_of_the_guide_is_taken(validator: Draft202012Validator) -> None:
    text = (pages.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    validator.validate(_as_editors_read(text.partition("```yaml\n")[2].partition("```")[0]))
