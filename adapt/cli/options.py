"""What several commands take, said once: data, shots, seeds, devices, backbones, and a recipe with its changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.shown import unseen

if TYPE_CHECKING:
    from adapt.recipe import Recipe
    from adapt.recipe.file import Override

Command = Callable[..., None]
Options = dict[str, Any]
Number = TypeVar("Number", int, float)

PARTS = ("train", "val", "test")
ALL = "all"

# the option of a recipe's command -> the recipe's key
_KEYS = {
    "root": "data.root",
    "shots": "data.shots",
    "seed": "seed",
    "device": "device",
    "backbone": "backbone",
}


class _Shots(click.ParamType):
    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == ALL:
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a number from 1 on nor {ALL}", param, ctx)
        return int(value)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "NUMBER|all"


_DATA = "A bundled or published set, an image folder, a .csv or a split .json."
_ROOT = "The folder of the published sets' folders, or of the paths inside a .csv or .json."

# of commands that measure or look at data

data = click.option("--data", required=True, help=_DATA)
root = click.option("--root", help=_ROOT)
names = click.option("--names", help="A file with readable names for the data's classes: .csv (class,name) or .json.")
classes = click.option("--classes", help="Other class names: separated by commas, or a text file with one a line.")
part = click.option(
    "--part", type=click.Choice(PARTS), default="test", show_default=True, help="Which images of the data."
)
measured = click.option(
    "--part",
    type=click.Choice((*PARTS, ALL)),
    default="test",
    show_default=True,
    help="Which images of the data: one part, or those of all parts.",
)
device = click.option("--device", default=AUTO, show_default=True, help="Where the model runs: cpu, cuda:1, ...")
cache = click.option(
    "--cache/--no-cache", default=True, show_default=True, help="Keep image features on disk for the next time."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
of_adapter = click.option("--backbone", help="The backbone, where the adapter does not name it.")


def default_backbone(source: str) -> str:
    """The backbone that every command takes for the data `source` where none is named: that of the zero-shot recipe."""
    from adapt.recipe import read_recipe

    return read_recipe("zero_shot", data=source).backbone


def say_backbone(name: str, source: str) -> None:
    """Say first, beside the results, on which backbone a command works, and what the bundled ones do not know."""
    from adapt.backbones.sources import BUNDLED
    from adapt.data.emoji.bundled import is_bundled

    click.echo(f"backbone   {name}", err=True)
    if name.partition("+")[0] in BUNDLED and not is_bundled(source):
        click.echo(
            f"{'':10} {name} knows drawings of emoji, and not photographs: it shows that all works, and a CLIP of "
            "photographs (--backbone open_clip:ViT-B-16-quickgelu/openai) is far better on them",
            err=True,
        )


def given_backbone(spec: str | None, device: str) -> Any:
    """The backbone that --backbone names; None where it is left out, so that the adapter says which."""
    from adapt.backbones.load import load_backbone

    return load_backbone(spec, device) if spec else None


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator for several, in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# of commands that take a recipe; what they leave out is as the recipe has it

recipe_data = click.option("--data", help=f"What to train on. {_DATA}")
recipe_root = click.option("--root", help=f"{_ROOT}  [default for published sets: data]")
shots = click.option("--shots", type=_Shots(), help="Training images a class, or all.  [default: the recipe's]")
seed = click.option("--seed", type=click.IntRange(min=0), help="Of picks and training.  [default: the recipe's]")
recipe_device = click.option("--device", help="Where to train: cpu, cuda:1, ...  [default: auto]")
recipe_backbone = click.option("--backbone", help="See `adapt backbones`.  [default: the recipe's]")
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change any key of the recipe, such as train.lr=0.01. May be repeated.",
)


def numbers(what: str, text: str, kind: type[Number] = int) -> list[Number]:
    """What --`what` lists, separated by commas. AdaptError for what is no number."""
    try:
        return [kind(each) for each in text.split(",")]
    except ValueError:
        raise AdaptError(
            f"--{what} is {text!r}; expected numbers such as {'1,2,3' if kind is int else '0,0.5,1'}"
        ) from None


def read(recipe: str, overrides: tuple[str, ...], options: Options, protocol: str | None = None) -> Recipe:
    """The recipe that a command asks for. AdaptError where an option and a --set disagree on the same key."""
    from adapt.recipe import read_recipe

    given = dict(options)
    data = given.pop("data", None)
    changes: list[Override] = [*overrides, *_as_overrides(given, overrides)]
    if data is not None:
        _check_agreement("data", "data.source", data, overrides)
    return read_recipe(recipe, changes, data, protocol)


def class_names(given: str | None) -> list[str] | None:
    """The names that --classes gives, in a file or separated by commas."""
    from adapt.data.readers.lines import read_lines

    if given is None:
        return None
    of_file = _is_file(given)
    if not of_file and given.endswith(".txt"):  # no class is called so: every image would be one of it
        raise AdaptError(f"--classes: there is no file {given!r}; give one, or names such as cat,dog")
    lines = read_lines(Path(given)) if of_file else given.split(",")
    names = [line.strip() for line in lines if line.strip()]
    for name in filter(unseen, names):
        raise AdaptError(f"--classes has {name!r}, with a control character: take it out")
    return names


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file's name: a list of classes
        return False


def as_words(options: Options) -> list[str]:
    """The options as they are typed."""
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def _as_overrides(options: Options, overrides: tuple[str, ...]) -> list[tuple[str, Any]]:
    found = []
    for name, value in options.items():
        if value is not None:
            value = None if value == ALL and name == "shots" else value
            _check_agreement(name, _KEYS[name], value, overrides)
            found.append((_KEYS[name], value))
    return found


def _check_agreement(name: str, key: str, value: Any, overrides: tuple[str, ...]) -> None:
    from adapt.recipe.file import set_key

    raw: Any = {}
    for override in overrides:
        set_key(raw, override)
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return
        raw = raw[part]
    if raw != value:
        said = ALL if value is None else value
        raise AdaptError(f"--{name} {said} and --set {key}={raw} disagree: give one of them")
