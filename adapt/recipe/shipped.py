"""Recipes by name: `METHOD/PROTOCOL`, or the method's name alone.

Other packages add recipes by an entry point in the group `adapt.recipes`, which names a package with files
`METHOD/NAME.yaml`.
"""

from __future__ import annotations

import importlib.util
import logging
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import brief
from adapt.methods import names as method_names
from adapt.recipe.file import RecipeFile, read_file

logger = logging.getLogger("adapt")
FEW_SHOT = "few_shot"
_USUAL = (FEW_SHOT, "questions")  # the protocol of a method's name alone
_LONGEST = 1024  # characters of a file name
# the recipes that a protocol can use, the first that exists
_TAKES = {"domain_generalisation": ("domain_generalisation", "cross_dataset")}


def shipped() -> dict[str, Path]:
    """Return a dictionary from the names of adapt's own recipes, such as `coop/few_shot`, to their paths."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return _recipes_in(folder)
    return {}


@cache
def known_recipes() -> dict[str, Path]:
    """Return a dictionary from names to paths for the recipes of adapt and of installed packages.

    An entry point that does not name a package is left out, with a warning. Raises AdaptError if two packages have a
    recipe with the same name.
    """
    known = shipped()
    for point in entry_points(group="adapt.recipes"):
        spec = None
        with suppress(ImportError):  # of a package above it
            spec = importlib.util.find_spec(point.value)
        folders = [] if spec is None else spec.submodule_search_locations or []
        if not folders:
            logger.warning("adapt.recipes:%s must name a package: %s is left out", point.name, point.value)
            continue
        for name, path in _recipes_in(Path(next(iter(folders)))).items():
            if name in known:
                raise AdaptError(f"two packages have a recipe called {name!r}, {known[name]} and {path}: remove one")
            known[name] = path
    return known


def _recipes_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str, protocol: str | None = None) -> RecipeFile:
    """Return the recipe file for `name`, which is a path, a recipe's name such as `coop/few_shot`, or a method's name.

    A method's name selects the method's recipe for `protocol`, else its few-shot recipe, else its only recipe. Raises
    AdaptError, which suggests similar names, if `name` does not select a recipe, and for an invalid file.
    """
    if len(name) < _LONGEST and Path(name).is_file():
        return read_file(Path(name), name)
    recipes = known_recipes()
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    key = recipe_of(key, protocol) or key
    if key in recipes:
        return read_file(recipes[key], key)
    method, _, rest = key.partition("/")
    if own := of_method(method):
        if not rest:
            raise AdaptError(f"the method {key} has several recipes: choose {' or '.join(own)}")
        raise AdaptError(
            f"{method} has no recipe {rest!r}: choose {' or '.join(own)}, and choose data sets with --data"
        )
    if key in method_names():
        raise AdaptError(
            f"the method {key} has no recipe: write a .yaml file with `method: {{name: {key}}}`, and with a section "
            "`train` if the method is trained by gradient steps"
        )
    methods = {each.partition("/")[0] for each in recipes}
    raise AdaptError(
        f"there is neither a recipe file nor a recipe called {brief(name)}; "
        f"{nearest(key, {*recipes, *methods}, '`adapt recipes`')}"
    )


def of_method(method: str) -> list[str]:
    """Return the names of the recipes of `method`."""
    return [name for name in known_recipes() if name.startswith(f"{method}/")]


def recipe_of(method: str, protocol: str | None = None) -> str | None:
    """Return the name of the default recipe of `method` (for `protocol`, if given), or None if there is no default."""
    recipes = of_method(method)
    wanted = (*(_TAKES.get(protocol, (protocol,)) if protocol else ()), *_USUAL)
    named = [f"{method}/{each}" for each in wanted if f"{method}/{each}" in recipes]
    return next(iter(named or (recipes if len(recipes) == 1 else [])), None)


def short(name: str, protocol: str | None = None) -> str:
    """Return the method's name if `name` is the default recipe of its method, and otherwise return `name`."""
    method = name.partition("/")[0]
    return method if recipe_of(method, protocol) == name else name
