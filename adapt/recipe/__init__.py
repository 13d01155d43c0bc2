"""The recipe: a YAML file that one command runs. Plain data; nothing in it is ever imported or executed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.recipe.file import Override, add_the_sets_own, one_length, read_file, set_key, source_of
from adapt.recipe.shipped import find_recipe
from adapt.shown import brief
from adapt.training.settings import TrainSettings
from adapt.validation import explain

if TYPE_CHECKING:
    from adapt.data.split import Split
    from adapt.methods.base import Method


class DataSection(BaseModel):
    """Which images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

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
    classes: str = Field(default="all", pattern=r"^(all|base|new|[1-9]\d*/[1-9]\d*)$")
    """All classes; one half of them, base or new, as the base-to-new protocol cuts them; or a part such as 2/3."""
    leave_out: str | None = None
    """A domain of the data: its images are tested, and none of them is learned from."""
    exif: Literal["turned", "stored"] | None = None
    """Photographs turned upright by their EXIF orientation, or as they are stored; left out: your own are turned."""
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
        """The data set, before shots are picked and classes are cut."""
        from adapt.data.readers import load

        split = load(self.source, self.root, self.names)
        split = split if self.exif is None else split.turning(self.exif == "turned")
        return split if self.leave_out is None else split.leaving_out(self.leave_out)


class Recipe(BaseModel):
    """All of a run: what is adapted, by what, on which images, how."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    method: dict[str, Any]
    """`name` and the method's own settings."""
    backbone: str = "mini-clip"
    data: DataSection
    start: str | None = None
    """An adapter, or a run directory, that training goes on from; left out, it starts anew."""
    train: TrainSettings | None = None
    """Left out for methods that nothing trains by steps."""
    blend: float | None = Field(default=None, ge=0, le=1)
    """Share of the adapted model in the answers, the rest being zero-shot (WiSE-FT)."""
    calibrate: bool = False
    """Divide logits by a temperature chosen on validation images, so that answers are as sure as they are right."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    device: str = AUTO
    """auto, the accelerator where there is one; or cpu, cuda, cuda:1, xpu, mps."""
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

    def new_method(self) -> Method:
        """Make the recipe's method, not yet built on a backbone."""
        from adapt import methods

        return methods.find(self.method["name"])(**self.method_config)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(
    recipe: str | Path, overrides: Iterable[Override] = (), data: str | None = None, protocol: str | None = None
) -> Recipe:
    """`recipe`, a file or the name of a shipped one, on the data set `data`.

    `overrides` are of the form `data.shots=4` or `("data.shots", 4)`; `data.source=NAME` means the same as `data`.
    Where `recipe` is a method's name alone, `protocol` (such as `base_to_new`) says which of its recipes is meant.

    Raises AdaptError where there is no such recipe (with the nearest names), for broken YAML, an unknown key (with the
    nearest valid one), a bad value, and where nothing says on what data.
    """
    found = find_recipe(str(recipe), protocol)
    file = read_file(found.path, found.name)
    overrides = tuple(overrides)
    changed = source_of({}, overrides)
    if None not in (data, changed) and data != changed:
        raise AdaptError(f"data.source={brief(changed)} is set, and the data is to be {data!r} too: give one of them")
    if data == "":
        raise AdaptError("the data is '', which names none: give a data set, a folder or a .csv")
    source = file.source(overrides) if data is None else data
    if source is None:
        raise file.needs_data()
    if not isinstance(source, str):
        return build_recipe(file.settings | {"data": {"source": source}}, found.name)  # which says what is wrong
    raw = file.on_data(source)
    for override in overrides:
        set_key(raw, override)
    one_length(raw, overrides)
    add_the_sets_own(raw, source)
    return build_recipe(raw, found.name)


def build_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Checks plain data as a recipe, the method's own settings included."""
    from adapt import methods

    try:
        recipe = Recipe(**raw)
    except ValidationError as error:
        raise AdaptError(explain(Recipe, error, where, "`adapt recipes --schema`")) from None
    except TypeError as error:
        raise AdaptError(f"{where}: a key is no text ({error}): write it in quotes, or take it out") from None
    method = methods.find(recipe.method["name"])
    try:
        method.Config(**recipe.method_config)
    except ValidationError as error:
        raise AdaptError(explain(method.Config, error, f"{where}: method", f"`adapt methods {method.name}`")) from None
    return recipe
