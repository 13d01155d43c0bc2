"""The recipe: a YAML file that one command runs. Plain data; nothing in it is ever imported or executed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapt import plain
from adapt.errors import AdaptError, nearest
from adapt.training.settings import TrainSettings
from adapt.validation import explain

if TYPE_CHECKING:
    from adapt.data.split import Split


_LARGEST = 2**20  # bytes of a recipe


class DataSection(BaseModel):
    """Which images."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: str
    """A bundled or published set, an image folder, a .csv or a split .json; see `adapt.data.load`."""
    root: str | None = None
    """The folder that holds the published sets' folders, or that paths inside a .csv or .json start from."""
    names: str | None = None
    """A file with readable names for the classes: a .csv (class,name) or a .json object."""
    shots: int | None = Field(default=16, ge=1)
    """Training images a class; null takes all."""
    sampling: Literal["coop", "clip-lora"] = "coop"
    """Whose code's picks the shots are."""
    classes: Literal["all", "base", "new"] = "all"
    """All classes, or one half of them, as the base-to-new protocol cuts them."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What happens where images do not decode; the check comes before training."""
    template: str = "a photo of a {}."
    """Of the zero-shot baseline that every run reports."""

    @field_validator("template")
    @classmethod
    def _place(cls, value: str) -> str:
        from adapt.methods.zero_shot import check_template

        return check_template(value)

    def load(self) -> Split:
        """The whole data set, before shots are picked and classes are cut."""
        from adapt.data.readers import load

        return load(self.source, self.root, self.names)


class Recipe(BaseModel):
    """All of a run: what is adapted, by what, on which images, how."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: dict[str, Any]
    """`name` and the method's own settings."""
    backbone: str = "mini-clip"
    data: DataSection
    train: TrainSettings | None = None
    """Left out for methods that nothing trains by steps."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    device: str = "cpu"
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the linears of the backbone's blocks in 4 or 8 bits."""
    fast: bool | None = None
    """The fast exact text path: null where it applies, true or refuse, false never."""
    cache: bool = True
    """Keep features of an unedited vision tower on disk."""
    checkpointing: bool = False
    """Recompute the blocks of edited towers in the backward pass, to save memory."""
    text_memory_gib: float | None = Field(default=None, gt=0)
    """Bound on the text side's activations; left out: half of what is free."""

    @field_validator("method")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("give the method's name, as in `method: {name: coop}`")
        return value

    @property
    def method_config(self) -> dict[str, Any]:
        return {key: value for key, value in self.method.items() if key != "name"}

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe at `path` with `key=value` overrides, such as `data.shots=4`.

    Raises AdaptError for a missing file, broken YAML, an unknown key (with the nearest valid one) or a bad value.
    """
    path = Path(path)
    if not path.is_file():
        raise AdaptError(f"there is no recipe at {path}; `adapt recipes` lists the shipped ones")
    try:
        if path.stat().st_size > _LARGEST:
            raise AdaptError(f"{path} is larger than {_LARGEST:,} bytes and no recipe")
        raw = _parsed(path.read_bytes())
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise AdaptError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise AdaptError(f"{path} is no recipe: expected keys such as method, data and train")
    for override in overrides:
        set_key(raw, override)
    return build_recipe(raw, str(path))


class _Loader(yaml.SafeLoader):
    """Plain data without references, which a few lines can multiply beyond all memory, and not too deep."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "recipes have no references (*name): write the value out")
        if self.depth == plain.DEPTH:
            raise yaml.composer.ComposerError(None, None, "it is nested too deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _parsed(text: str | bytes) -> Any:
    """What YAML says. YAMLError or ValueError where it is broken, or holds what no recipe may."""
    value = yaml.load(text, _Loader)
    plain.check(value, longest=None)
    return value


def build_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Checks plain data as a recipe, the method's own settings included."""
    from adapt import methods

    try:
        recipe = Recipe(**raw)
    except ValidationError as error:
        raise AdaptError(explain(Recipe, error, where)) from None
    except TypeError as error:
        raise AdaptError(f"{where}: {error}") from None
    method = methods.find(recipe.method["name"])
    try:
        method.Config(**recipe.method_config)
    except ValidationError as error:
        raise AdaptError(explain(method.Config, error, f"{where}: method")) from None
    return recipe


def set_key(raw: dict[str, Any], override: str) -> None:
    """Puts `key=value`, such as `data.shots=4`, into plain data. Raises AdaptError where it is of another form."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise AdaptError(f"override {override!r} is not of the form key=value, such as data.shots=4")
    *parents, leaf = key.split(".")
    section: Any = raw
    for part in parents:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise AdaptError(f"override {override!r}: {part!r} is a value, not a section")
    try:
        section[leaf] = _parsed(value)
    except (yaml.YAMLError, ValueError) as error:
        raise AdaptError(f"override {override!r}: the value is not valid YAML") from error


def shipped() -> dict[str, Path]:
    """The recipes that come with adapt by name, such as `coop/eurosat`: found by listing the folder."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
            }
    return {}


def find_recipe(name: str) -> Path:
    """A recipe's file: `name` itself, or the shipped one of that name. Raises AdaptError with the nearest names."""
    if Path(name).is_file():
        return Path(name)
    recipes = shipped()
    key = name.removeprefix("recipes/").removesuffix(".yaml")
    if key not in recipes:
        raise AdaptError(
            f"there is no recipe file {name!r} and no shipped recipe of that name; {nearest(key, recipes)}"
        )
    return recipes[key]
