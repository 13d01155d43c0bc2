"""Commands that list what there is: `adapt methods`, `adapt backbones`, `adapt recipes` and `adapt cache`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.options import command
from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import readable_bytes, shown

if TYPE_CHECKING:
    from adapt.recipe.file import RecipeFile


@command()
def methods(name: str | None = None) -> None:
    """List the methods, or show the settings of the method NAME with their defaults."""
    from adapt import methods as package

    if name is None:
        for each in package.names():
            try:
                title = package.find(each).title
            except AdaptError as error:  # of a package that cannot be imported
                title = f"({error})"
            click.echo(f"{each:16} {title}")
        click.echo("\nSettings of one: adapt methods NAME")
        return
    method = package.find(name)
    click.echo(f"{method.title}\n")
    for key, field in method.Config.model_fields.items():
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        click.echo(f"  {key:18} {default:24} {field.description or ''}".rstrip())


@command()
def backbones() -> None:
    """List the ways to name a backbone in recipes, commands and `adapt.load_backbone`."""
    from adapt.backbones.families import forms

    for form, text in forms().items():
        click.echo(f"{form:28} {text}")


@command()
def cache(
    *, clear: Annotated[bool, "Delete all cached features, which are computed again when needed."] = False
) -> None:
    """Show how much disk space the cached image features take, or clear them.

    Features are stored in $ADAPT_CACHE (default: ~/.cache/adapt/features) and take at most $ADAPT_CACHE_GIB GiB
    (default: 4). Beyond this limit, the least recently used features are deleted.
    """
    from adapt.data.decoding.cache import FeatureCache

    store = FeatureCache()
    before = store.sizes()
    if clear:
        store.clear()
    total = sum(size for _, size in before.values())
    click.echo(f"{store.directory}: {readable_bytes(total)} of {readable_bytes(store.max_bytes)}")
    for name, (files, size) in before.items():
        click.echo(f"  {shown(name)}  {files:5} files  {readable_bytes(size):>10}")
    if clear:
        click.echo("cleared")


# protocols whose recipes have a command of their own; `adapt train` takes all recipes
_PROTOCOLS = ("base_to_new", "cross_dataset", "domain_generalisation")


@command()
def recipes(
    name: str | None = None,
    *,
    data: Annotated[str | None, "Data set for which to show all settings and the papers' figures."] = None,
    backbone: Annotated[str | None, "Backbone for which to show all settings, with --data."] = None,
    schema: Annotated[bool, "Print the JSON Schema of recipes, for checks and completion in editors."] = False,
    as_json: common.AsJson = False,
) -> None:
    """List all recipes, or show the recipe NAME with its description, its settings, and the command that runs it.

    \b
    Examples:
      adapt recipes
      adapt recipes coop
      adapt recipes coop --data eurosat
      adapt recipes das --backbone open_clip:ViT-B-16-quickgelu/openai
      adapt recipes --schema > recipe.schema.json
    """
    if schema:
        if name is not None or data is not None:
            raise AdaptError("--schema prints one schema for all recipes: leave out NAME and --data")
        from adapt.recipe.schema import recipe_schema

        click.echo(plain.dump(recipe_schema(), indent=2))
        return
    from adapt.recipe.file import read_file
    from adapt.recipe.shipped import find_recipe, known_recipes, of_method, recipe_of

    if name is None or (of_method(name) and recipe_of(name) is None):
        names = known_recipes() if name is None else of_method(name)
        titles = {each: read_file(known_recipes()[each], each).title for each in names}
        if as_json:
            click.echo(plain.dump([{"name": each, "title": title} for each, title in titles.items()]))
        else:
            click.echo("\n".join(f"{each:21} {title}" for each, title in titles.items()))
            click.echo("\nTo show one: adapt recipes NAME --data DATA")
        return
    file = find_recipe(name)
    if backbone is not None and data is None:
        data = str(file.source() or "photos")  # data of one's own
    described = _described(file, data, backbone)
    click.echo(plain.dump(described) if as_json else _as_text(described, data))


def _described(file: RecipeFile, data: str | None, backbone: str | None) -> dict[str, object]:
    """Return a recipe's description, command and settings, which are resolved for `data` if `data` is given."""
    from adapt.recipe import read_recipe
    from adapt.recipe.shipped import of_method, short

    protocol = stem if (stem := Path(file.name).stem) in _PROTOCOLS else None
    recipe = short(file.name, protocol)
    on = [] if data is None and file.source() else ["--data", data or "DATA"]
    verb = protocol.replace("_", "-") if protocol else "train"
    described: dict[str, object] = {"name": file.name, "title": file.title, "comment": file.comment}
    described["command"] = shlex.join(["adapt", verb, recipe, *on, "--out", f"runs/{Path(recipe).stem}"])
    described["others"] = [name for name in of_method(file.name.partition("/")[0]) if name != file.name]
    if data is None:
        return described | {"settings": file.settings, "on": file.on, "expected": file.expected}
    changes = [] if backbone is None else [("backbone", backbone)]
    resolved = read_recipe(file.name, changes, data).model_dump(mode="json")
    return described | {"settings": resolved, "on": {}, "expected": file.expected_on(data)}


def _as_text(described: JsonObject, data: str | None) -> str:
    lines = [described["name"], "", described["comment"], "", f"Settings on {data}:" if data else "Settings:"]
    lines.append(_yaml(described["settings"]))
    for name, changes in described["on"].items():
        others = "data of your own" if name == "own" else name
        lines += [f"On {others}, in place of these:", _yaml(changes)]
    expected = described["expected"]
    if expected and data:
        lines += [f"Expected on {data}: {expected}", ""]
    elif expected:
        lines += [f"Figures to expect, by --data: {', '.join(expected)}", ""]
    lines.append(f"Command: {described['command']}")
    if described["others"]:
        lines.append(f"Other recipes of this method: {', '.join(described['others'])}")
    return "\n".join(shown(line) for line in "\n".join(lines).splitlines())


def _yaml(settings: dict[str, object]) -> str:
    import yaml

    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return "".join(f"  {line}\n" for line in text.splitlines())
