"""Options that commands share, made of the annotated parameters of their functions."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import click

from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.shown import unseen

if TYPE_CHECKING:
    from adapt.backbones.base import Backbone
    from adapt.models.wrap import Model
    from adapt.recipe import Recipe
    from adapt.recipe.file import Override

Number = TypeVar("Number", int, float)

PARTS = ("train", "val", "test")
ALL = "all"
REQUIRED = inspect.Parameter.empty

# option of a command that takes a recipe -> key of the recipe
_KEYS = {
    "data": "data.source",
    "root": "data.root",
    "columns": "data.columns",
    "shots": "data.shots",
    "seed": "seed",
    "device": "device",
    "backbone": "backbone",
}


@dataclass(frozen=True)
class Option:
    """What a parameter's annotation says of an option beside its type, as in `Annotated[int, Option("Jobs.", min=1)]`.

    `flag` is for an option that is not called as its parameter, and `kind` for values that no Python type describes.
    `default` is for fields of a TypedDict, which have none.
    """

    help: str
    flag: str | None = None
    min: float | None = None
    max: float | None = None
    kind: click.ParamType | None = None
    metavar: str | None = None
    callback: Callable[[click.Context, click.Parameter, Any], Any] | None = None
    default: object = None


@dataclass(frozen=True)
class Argument:
    """What a parameter's annotation says of an argument that help does not call as its parameter."""

    metavar: str


def command(
    name: str | None = None, *, group: Any = click, without: Collection[str] = (), **settings: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command of a function.

    A parameter that is annotated with an `Option`, or with its help text, is an option, and another one an argument;
    without a default, it is required. The fields of `**options: Unpack[...]` are options too, but for those `without`.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        params: list[click.Parameter] = []
        hints = get_type_hints(function, include_extras=True)
        for key, each in inspect.signature(function).parameters.items():
            if each.kind is not each.VAR_KEYWORD:
                params.append(_param(key, hints[key], each.default))
            elif get_args(hints[key]):  # they come first, as they say what is worked on
                fields = get_type_hints(get_args(hints[key])[0], include_extras=True).items()
                defaults = {field: getattr(hint.__metadata__[0], "default", None) for field, hint in fields}
                params[:0] = [_param(field, hint, defaults[field]) for field, hint in fields if field not in without]
        made: click.Command = group.command(name, params=params, **settings)(function)
        return made

    return decorate


def _param(name: str, hint: Any, default: object) -> click.Parameter:
    """Return click's parameter for a function's parameter `name` with the annotation `hint`."""
    kind, of = (hint, None) if get_origin(hint) is not Annotated else get_args(hint)
    of = Option(of) if isinstance(of, str) else of
    kind = next((each for each in get_args(kind) if NoneType in get_args(kind) and each is not NoneType), kind)
    several, required = get_origin(kind) is tuple, default is REQUIRED
    kind = get_args(kind)[0] if several else kind
    shared: dict[str, Any] = {"required": required, "metavar": of and of.metavar, "type": kind}
    if kind is Path:
        shared["type"] = click.Path(path_type=Path)
    elif get_origin(kind) is Literal:
        shared["type"] = click.Choice(get_args(kind))
    if not isinstance(of, Option):
        return click.Argument([name], nargs=-1 if several else 1, **shared)
    if of.kind is not None:
        shared["type"] = of.kind
    elif of.min is not None or of.max is not None:
        ranged = click.IntRange if kind is int else click.FloatRange
        shared["type"] = ranged(of.min, of.max)  # type: ignore[arg-type]
    if kind is bool or not (required or default in (None, ())):
        shared |= {"default": default, "show_default": default is not None and default is not False}
    flag = of.flag or f"--{name.replace('_', '-')}"
    return click.Option(
        [flag, name], multiple=several, is_flag=kind is bool, help=of.help, callback=of.callback, **shared
    )


class _Shots(click.ParamType):
    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == ALL:
            return ALL
        if not str(value).isdecimal() or int(str(value)) < 1:
            self.fail(f"{value!r} is neither a positive whole number nor {ALL}", param, ctx)
        return int(str(value))


def _once(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the settings unchanged. Raises AdaptError if a key has two values, of which the last would count."""
    keys = [setting.partition("=")[0] for setting in dict.fromkeys(given)]
    for key in keys:
        if keys.count(key) > 1:
            raise AdaptError(f"--set {key} is given {keys.count(key)} values: give one")
    return given


SOURCES = "a bundled or published set, an image folder, a .csv, .json or .parquet"
_ROOT = "Folder that holds the published sets, or that paths inside a list or table start from."

# options of commands that measure or show data

DataToMeasure = Annotated[str, f"Data to measure on: {SOURCES}."]
Root = Annotated[str | None, Option(_ROOT)]
ColumnNames = Annotated[
    str | None,
    Option(
        "What columns of a list or table are, such as image=img,label=cat,ignored=notes.", metavar="NAME=COLUMN,..."
    ),
]
ReadableNames = Annotated[str | None, "File with readable class names: .csv (class,name) or .json."]
OtherClasses = Annotated[
    str | None, Option("Other class names: a comma-separated list, or a text file with one per line.", "--classes")
]
PartToMeasure = Annotated[Literal["train", "val", "test", "all"], "Part of the data to measure, or all of it."]
RunsOn = Annotated[str, "Device to run on, such as cpu or cuda:1."]
CacheFeatures = Annotated[bool, Option("Cache image features on disk for the next run.", "--cache/--no-cache")]
AsJson = Annotated[bool, Option("Print JSON.", "--json")]
AtUse = Annotated[
    tuple[str, ...],
    Option("Change how the method answers, such as use.tokens=4 (repeatable).", "--set", metavar="use.KEY=VALUE"),
]
OfAdapter = Annotated[str | None, "Backbone, if the adapter does not name it."]
Quiet = Annotated[bool, "Hide progress."]

# options of commands that take a recipe; whatever is left out is as the recipe has it

RecipeRoot = Annotated[str | None, f"{_ROOT}  [default for published sets: data]"]
RecipeDevice = Annotated[str | None, "Device to train on, such as cpu or cuda:1.  [default: auto]"]
RecipeBackbone = Annotated[str | None, "Backbone to adapt (see `adapt backbones`).  [default: the recipe's]"]
Overrides = Annotated[
    tuple[str, ...],
    Option(
        "Change a key of the recipe, such as train.lr=0.01 (repeatable).", "--set", metavar="KEY=VALUE", callback=_once
    ),
]
RunOut = Annotated[Path | None, "New folder for the run, or none.  [default: runs/NAME-DATE]"]
TrackedBy = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
    Option("Also log each run to TensorBoard, Weights & Biases or MLflow (repeatable).", "--track"),
]


class Options(TypedDict, total=False):
    """The options of a command that takes a recipe; if an option is missing or None, the recipe's value is used."""

    data: Annotated[str | None, f"Data to train on: {SOURCES}."]
    root: RecipeRoot
    columns: ColumnNames
    shots: Annotated[
        int | str | None,
        Option("Training images per class, or all.  [default: the recipe's]", kind=_Shots(), metavar="NUMBER|all"),
    ]
    seed: Annotated[int | None, Option("Seed for picking shots and for training.  [default: the recipe's]", min=0)]
    device: RecipeDevice
    backbone: RecipeBackbone


def say_backbone(name: str | None, source: str) -> str:
    """Print the backbone's name to stderr and return it: `name`, or the zero-shot recipe's for the data `source`.

    A warning follows if a bundled backbone is used with data other than emoji.
    """
    from adapt.backbones.sources import BUNDLED
    from adapt.data.emoji.bundled import is_bundled

    if not name:
        from adapt.recipe import read_recipe

        name = read_recipe("zero_shot", data=source).backbone
    click.echo(f"backbone   {name}", err=True)
    if name.rpartition(":")[2].partition("+")[0] in BUNDLED and not is_bundled(source):
        better = "a CLIP of photographs (--backbone open_clip:ViT-B-16-quickgelu/openai), or offline, without words, "
        better += "--backbone efficientnet-lite0,"
        if name.endswith("mini-vlm"):
            larger = name.removesuffix("mini-vlm") + "hf:HuggingFaceTB/SmolVLM-256M-Instruct"
            better = f"a model of photographs (such as --backbone {larger})"
        click.echo(
            f"{'':10} {name} was trained on drawings of emoji, not on photographs: it is good for trying things out; "
            f"{better} is far better on them",
            err=True,
        )
    return name


def given_backbone(spec: str | None, device: str) -> Backbone | None:
    """Load the backbone named by --backbone, or return None without --backbone, to use the adapter's own backbone."""
    from adapt.backbones.load import load_backbone

    return load_backbone(spec, device) if spec else None


def load_adapter(
    path: Path, backbone: str | None, device: str = "cpu", class_names: Sequence[str] | None = None
) -> Model:
    """Return an adapter on the backbone named by --backbone, or on its own."""
    from adapt.loading import load

    return load(path, given_backbone(backbone, device), class_names, device=device)


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
    from adapt.recipe.file import set_key

    settings, changes = dict[str, object](), list["Override"](overrides)
    for override in overrides:
        set_key(settings, override)
    by_hand = dict(plain.leaves(settings))
    for name, key in _KEYS.items():
        if (given := options.get(name)) is None:
            continue
        value = None if given == ALL and name == "shots" else given
        if by_hand.get(key, value) != value:
            raise AdaptError(f"--{name} {given} and --set {key}={by_hand[key]} disagree: give only one of them")
        changes.append((key, value))
    return read_recipe(recipe, changes, options.get("data"), protocol)


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

    try:
        of_file = Path(given).is_file()
    except OSError:  # too long for a file name: a list of classes
        of_file = False
    if not of_file and given.endswith(".txt"):  # a missing file, not a class that every image would belong to
        raise AdaptError(f"--classes: there is no file {given!r}: give an existing file, or names such as cat,dog")
    lines = read_lines(Path(given)) if of_file else given.split(",")
    names = [line.strip() for line in lines if line.strip()]
    for name in filter(unseen, names):
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise AdaptError(f"--classes: the name {name!r} is not valid in this locale: set PYTHONUTF8=1")
        raise AdaptError(f"--classes: the name {name!r} contains a control character: remove the character")
    return names
