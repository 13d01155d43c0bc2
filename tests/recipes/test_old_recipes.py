"""Every recipe that there was has the same settings by its new command, and by its old name through this release."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from adapt import methods
from adapt.data.readers import published
from adapt.recipe import Recipe, build_recipe, read_recipe
from adapt.recipe import old_names as old_recipes
from adapt.recipe.shipped import shipped

# what the resolved settings were, without keys that were off by default, and the device and the precision, which are
# auto now; train.imitate is method.imitate of das now;
# maple/folder's depth of 9 follows the tower, which is 9 on the backbone of that recipe
_OLD: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("old_recipes.json").read_text(encoding="utf-8"))
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "old_recipes.md"

every_name = pytest.mark.parametrize("name", [name for name in _OLD if name not in shipped()])


def _complete(recipe: Recipe) -> dict[str, Any]:
    """All settings, with the method's defaults filled in."""
    config = methods.find(recipe.method["name"]).Config(**recipe.method_config)
    return recipe.model_dump() | {"method": {"name": recipe.method["name"], **config.model_dump()}}


def test_the_names_are_those_that_there_were() -> None:
    assert len(_OLD) == 79
    assert {name for name in _OLD if old_recipes.find(name) is None} == {"quickstart"}
    assert _complete(read_recipe("quickstart")) == _complete(build_recipe(_OLD["quickstart"], "quickstart"))


@every_name
def test_the_new_command_has_the_old_settings(name: str) -> None:
    old = old_recipes.find(name)
    assert old is not None
    assert _complete(read_recipe(old.recipe, data=old.data)) == _complete(build_recipe(_OLD[name], name))


@every_name
def test_the_old_name_goes_on_working(name: str, caplog: pytest.LogCaptureFixture) -> None:
    old = old_recipes.find(name)
    assert old is not None
    with caplog.at_level(logging.WARNING, "adapt"):
        assert _complete(read_recipe(name)) == _complete(build_recipe(_OLD[name], name))
    (record,) = caplog.records
    assert record.getMessage().endswith(f"adapt train {old_recipes.arguments(old)}")


def page() -> str:
    """What the page in docs/ says; the recipes for the published sets are one row."""
    rows = {}
    for name in [name for name in _OLD if name not in shipped()]:
        old = old_recipes.find(name)
        assert old is not None
        new = old_recipes.arguments(old)
        method, _, data = name.partition("/")
        if data in published.trained():
            name, new = f"{method}/SET", new.removesuffix(data) + "SET"
        rows[f"`{name}`"] = f"`{new}`"
    width = max(map(len, rows))
    table = "\n".join(
        f"| {name:{width}} | {new} |" for name, new in ({"before": "now", "-" * width: "---"} | rows).items()
    )
    return f"""\
# Old names of recipes

There was a recipe for each method and data set. Now a recipe says how a method is trained, and the command says on
what: `adapt train coop/eurosat` is `adapt train coop --data eurosat`, with the same settings. The old names go on
working through one release, and tell the new ones. SET stands for each of the eleven published data sets.

{table}

`--set data.shots=4` is `--shots 4` now, `--set seed=2` is `--seed 2`, and likewise `--root`, `--device` and
`--backbone`; `--set` still takes every key. What a recipe sets on which data: `adapt recipes coop`.
"""


def test_the_page_tells_them_all() -> None:
    assert _PAGE.read_text(encoding="utf-8") == page(), "write it anew: python tests/recipes/test_old_recipes.py"


if __name__ == "__main__":
    _PAGE.write_text(page(), encoding="utf-8")
