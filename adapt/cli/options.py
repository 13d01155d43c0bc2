"""Options that commands share: data, shots, seeds, devices, backbones, and a recipe with its changes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import click

from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import unseen

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone
    from adapt.models.wrap import Model
    from adapt.recipe import Recipe
    from adapt.recipe.file import Override

Command = Callable[..., None]
Number = TypeVar("Number", int, float)

PARTS = ("train", "val", "test")
ALL = "all"

# option of a command that takes a recipe -> key of the recipe
_KEYS = {
    "root": "data.root",
    "shots": "data.shots",
    "seed": "seed",
    "device": "device",
    "backbone": "backbone",
}


class Options(TypedDict, total=False):
    """The options of a command that takes a recipe; if an option is missing or None, the recipe's value is used."""

    data: str | None
    root: str | None
    shots: int | str | None
    seed: int | None
    device: str | None
    backbone: str | None


class _Shots(click.ParamType):
    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == ALL:
            return ALL
        if not str(value).isdecimal() or int(str(value)) < 1:
            self.fail(f"{value!r} is neither a positive whole number nor {ALL}", param, ctx)
        return int(str(value))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "NUMBER|all"


SOURCES = "a bundled or published set, an image folder, a .csv or a split .json"
_ROOT = "Folder that holds the published sets, or that paths inside a .csv or .json start from."

# options of commands that measure or show data

data = click.option("--data", required=True, help=f"Data to measure on: {SOURCES}.")
root = click.option("--root", help=_ROOT)
names = click.option("--names", help="File with readable class names: .csv (class,name) or .json.")
classes = click.option("--classes", help="Other class names: a comma-separated list, or a text file with one per line.")
part = click.option(
    "--part", type=click.Choice(PARTS), default="test", show_default=True, help="Part of the data to measure."
)
measured = click.option(
    "--part",
    type=click.Choice((*PARTS, ALL)),
    default="test",
    show_default=True,
    help="Part of the data to measure, or all of it.",
)
device = click.option("--device", default=AUTO, show_default=True, help="Device to run on, such as cpu or cuda:1.")
cache = click.option(
    "--cache/--no-cache", default=True, show_default=True, help="Cache image features on disk for the next run."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
at_use = click.option(
    "--set",
    "at_use",
    multiple=True,
    metavar="use.KEY=VALUE",
    help="Change how the method answers, such as use.tokens=4 (repeatable).",
)
of_adapter = click.option("--backbone", help="Backbone, if the adapter does not name it.")


def default_backbone(source: str) -> str:
    """Return the name of the default backbone for the data `source`, which is defined by the zero-shot recipe."""
    from adapt.recipe import read_recipe

    return read_recipe("zero_shot", data=source).backbone


def say_backbone(name: str, source: str) -> None:
    """Print the backbone's name to stderr, and a warning if a bundled backbone is used with data other than emoji."""
    from adapt.backbones.sources import BUNDLED
    from adapt.data.emoji.bundled import is_bundled

    click.echo(f"backbone   {name}", err=True)
    if name.removeprefix("embed:").partition("+")[0] in BUNDLED and not is_bundled(source):
        better = "a CLIP of photographs (--backbone open_clip:ViT-B-16-quickgelu/openai)"
        if name == "mini-vlm":
            better = "a model of photographs (such as --backbone hf:HuggingFaceTB/SmolVLM-256M-Instruct)"
        click.echo(
            f"{'':10} {name} was trained on drawings of emoji, not on photographs: it is good for trying things out; "
            f"{better} is far better on them",
            err=True,
        )


def given_backbone(spec: str | None, device: str) -> Backbone | None:
    """Load the backbone named by --backbone, or return None without --backbone, to use the adapter's own backbone."""
    from adapt.backbones.load import load_backbone

    return load_backbone(spec, device) if spec else None


def set_at_use(model: Model, changes: Sequence[str]) -> None:
    """Apply the changes from --set to a loaded adapter. Raises AdaptError for a key that its method does not have."""
    if not changes:
        return
    from adapt.recipe.file import pair

    pairs = [pair(change) for change in changes]
    for key, _ in pairs:
        if not key.startswith("use."):
            raise AdaptError(f"--set {key}: expected use.KEY=VALUE, because the adapter's other settings are learned")
    model.set_at_use(**{key.removeprefix("use."): value for key, value in pairs})


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine click options into one decorator that adds them in the given order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# options of commands that take a recipe; whatever is left out is as the recipe has it

recipe_data = click.option("--data", help=f"Data to train on: {SOURCES}.")
recipe_root = click.option("--root", help=f"{_ROOT}  [default for published sets: data]")
shots = click.option("--shots", type=_Shots(), help="Training images per class, or all.  [default: the recipe's]")
seed = click.option(
    "--seed", type=click.IntRange(min=0), help="Seed for picking shots and for training.  [default: the recipe's]"
)
recipe_device = click.option("--device", help="Device to train on, such as cpu or cuda:1.  [default: auto]")
recipe_backbone = click.option("--backbone", help="Backbone to adapt (see `adapt backbones`).  [default: the recipe's]")


def _once(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the settings unchanged. Raises AdaptError if a key has two values, of which the last would count."""
    keys = [setting.partition("=")[0] for setting in dict.fromkeys(given)]
    for key in keys:
        if keys.count(key) > 1:
            raise AdaptError(f"--set {key} is given {keys.count(key)} values: give one")
    return given


overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    callback=_once,
    metavar="KEY=VALUE",
    help="Change a key of the recipe, such as train.lr=0.01 (repeatable).",
)

run_out = click.option(
    "--out", type=click.Path(path_type=Path), help="New folder for the run, or none.  [default: runs/NAME-DATE]"
)


def numbers(what: str, text: str, kind: type[Number] = int) -> list[Number]:
    """Parse `text`, the value of the option --`what`, as comma-separated numbers. Raises AdaptError for other text."""
    try:
        return [kind(each) for each in text.split(",")]
    except ValueError:
        raise AdaptError(
            f"--{what} is {text!r}; expected numbers such as {'1,2,3' if kind is int else '0,0.5,1'}"
        ) from None


def read(recipe: str, overrides: tuple[str, ...], options: Options, protocol: str | None = None) -> Recipe:
    """Read a recipe and apply --set and other options. Raises AdaptError if --set and an option disagree on a key."""
    from adapt.recipe import read_recipe

    data = options.get("data")
    changes: list[Override] = [*overrides, *_as_overrides(options, overrides)]
    if data is not None:
        _check_agreement("data", "data.source", data, overrides)
    return read_recipe(recipe, changes, data, protocol)


def folder_name(data: str) -> str:
    """Return a folder name derived from `data`: a path's file name without suffix, or a data set's name."""
    return re.sub(r"[^\w.@-]+", "-", Path(data).resolve().stem if Path(data).exists() else data).strip("-.") or "data"


def run_folder(out: Path | None, name: str) -> Path | None:
    """Return the folder of a run: `out`, or None for the word none, or else a new one called by `name` and the time."""
    if out is not None:
        return None if out == Path("none") else out
    path = Path("runs", f"{folder_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    while os.path.lexists(path):  # another of the same second
        path = path.with_name(f"{path.name}-2")
    return path


def class_names(given: str | None) -> list[str] | None:
    """Return the class names from --classes, which is a file or a comma-separated list; None without --classes."""
    if given is None:
        return None
    from adapt.data.readers.lines import read_lines

    of_file = _is_file(given)
    if not of_file and given.endswith(".txt"):  # a missing file, not a class that every image would belong to
        raise AdaptError(f"--classes: there is no file {given!r}: give an existing file, or names such as cat,dog")
    lines = read_lines(Path(given)) if of_file else given.split(",")
    names = [line.strip() for line in lines if line.strip()]
    for name in filter(unseen, names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise AdaptError(f"--classes: the name {name!r} is not valid in this locale: set PYTHONUTF8=1")
        raise AdaptError(f"--classes: the name {name!r} contains a control character: remove the character")
    return names


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a file name: a list of classes
        return False


def as_words(options: Options) -> list[str]:
    """Return the options that are set, in the form of command-line arguments such as `--shots=4`."""
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def _as_overrides(options: Options, overrides: tuple[str, ...]) -> list[tuple[str, object]]:
    changes = []
    for name, key in _KEYS.items():
        value = options.get(name)
        if value is not None:
            value = None if value == ALL and name == "shots" else value
            _check_agreement(name, key, value, overrides)
            changes.append((key, value))
    return changes


def _check_agreement(name: str, key: str, value: object, overrides: tuple[str, ...]) -> None:
    from adapt.recipe.file import set_key

    settings: dict[str, object] = {}
    for override in overrides:
        set_key(settings, override)
    raw: object = settings
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return
        raw = raw[part]
    if raw != value:
        given = ALL if value is None else value
        raise AdaptError(f"--{name} {given} and --set {key}={raw} disagree: give only one of them")
