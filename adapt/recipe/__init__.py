"""The recipe: a YAML file that one command runs. It is plain data; nothing in it is imported or executed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from adapt.backbones.sources import is_bundled
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import brief
from adapt.common.validation import StrictModel, explain
from adapt.data.bags import BagPooling
from adapt.recipe.file import Override, add_the_sets_own, one_length, set_key, source_of
from adapt.recipe.settings import TrainSettings
from adapt.recipe.shipped import find_recipe

if TYPE_CHECKING:
    from adapt.data.split import Split
    from adapt.methods.base import Method


logger = logging.getLogger("adapt")


class DataSection(StrictModel):
    """The section `data` of a recipe, which defines the data set and the sampling of training images."""

    source: str
    """A bundled or published data set, an image folder, a .csv or a split .json; see `adapt.data.load`."""
    root: str | None = None
    """The folder that holds the folders of published data sets, or to which paths in a .csv or .json are relative."""
    names: str | None = None
    """A file with readable names of the classes: a .csv (class,name) or a .json object."""
    columns: str | None = Field(default=None, exclude_if=lambda columns: columns is None)
    """What columns, or keys of rows, are called, as image=img,label=cat; ignored=notes leaves one out."""
    shots: int | None = Field(default=16, ge=1)
    """Training images for each class; null takes all."""
    rest: Literal["left out", "unlabelled"] = "left out"
    """What becomes of the training images beyond the shots: left out, or unlabelled images to learn from."""
    sampling: Literal["coop", "clip-lora"] = "coop"
    """Which reference code's sampling of shots is followed."""
    classes: str = Field(default="all", pattern=r"^(all|base|new|[1-9]\d*/[1-9]\d*)$")
    """All classes; base or new, the halves of the base-to-new protocol; or a part such as 2/3."""
    leave_out: str | None = None
    """A domain whose images are only tested, never trained on."""
    exif: Literal["turned", "stored"] | None = None
    """Turn photographs upright by their EXIF orientation, or take them as stored; by default your own are turned."""
    broken: Literal["refuse", "skip"] = "refuse"
    """Refuse or skip images that do not decode; they are checked before training."""
    max_pixels: int | None = Field(default=None, ge=1)
    """At most about this many pixels of each image, for native vision-language models; by default their own bound."""
    template: str = "a photo of a {}."
    """The prompt template of the zero-shot baseline that every run reports."""

    @field_validator("template")
    @classmethod
    def _place(cls, value: str) -> str:
        from adapt.methods.zero_shot import check_template

        return check_template(value)

    def load(self, unseen: bool = False, note: bool = False) -> Split:
        """Return the data set with all images and classes, before shots are sampled and classes are divided.

        With `unseen`, classes may have no training image. With `note`, a warning counts the files that are passed over.
        """
        from adapt.data.readers import load

        split = load(self.source, self.root, self.names, unseen, note, self.columns)
        split = split if self.exif is None else split.turning(self.exif == "turned")
        return split if self.leave_out is None else split.leaving_out(self.leave_out)


class Recipe(StrictModel):
    """A recipe, which defines a training run by backbone, method, data and training settings."""

    method: dict[str, Any]
    """The method's `name` and its own settings."""
    backbone: str = "mini-clip"
    data: DataSection
    start: str | None = None
    """An adapter or run directory to continue training from; by default training starts afresh."""
    train: TrainSettings | None = None
    """How to train; left out for methods that take no training steps."""
    blend: float | None = Field(default=None, ge=0, le=1)
    """Weight of the adapted model in the predictions, the rest being zero-shot (WiSE-FT)."""
    pooling: BagPooling = "features"
    """What is averaged over the images of an item that has several; with logits, each image is learned by itself."""
    calibrate: bool | None = None
    """Calibrate: divide logits by a temperature chosen on held-out images, so that confidence matches accuracy. By
    default, a method without training steps is calibrated, but not in the papers' protocols."""
    watch: bool = Field(default=False, exclude_if=lambda wanted: not wanted)
    """Keep in the adapter what the training images look like, so that later images that look otherwise are noticed."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    device: str = AUTO
    """auto, which takes the accelerator if there is one; or cpu, cuda, cuda:1, xpu, mps."""
    quantize: Literal["nf4", "int8"] | None = None
    """Quantise the linear layers of the backbone's blocks to 4 or 8 bits."""
    fast: bool | None = None
    """The fast exact paths of text, vision and native models: null uses them where they apply, true refuses to run
    without them, false never uses them."""
    cache: bool = True
    """Cache the features of an unedited vision tower on disk."""
    checkpointing: bool = False
    """Recompute the blocks of edited towers in the backward pass, to save memory."""
    text_memory_gib: float | None = Field(default=None, gt=0)
    """Limit on the memory of the text side's activations; by default half of what is free."""

    @field_validator("method")
    @classmethod
    def _named(cls, value: dict[str, object]) -> dict[str, object]:
        if not isinstance(value.get("name"), str):
            raise ValueError("give the method's name, as in `method: {name: coop}`")
        return value

    @property
    def method_config(self) -> dict[str, object]:
        return {key: value for key, value in self.method.items() if key != "name"}

    def new_method(self) -> Method:
        """Return a new method object with the recipe's settings, which is not built on a backbone yet."""
        from adapt import methods

        return methods.find(self.method["name"])(**self.method_config)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_recipe(
    recipe: str | Path, overrides: Iterable[Override] = (), data: str | None = None, protocol: str | None = None
) -> Recipe:
    """Return the recipe in the file, or with the shipped name, `recipe`, with settings for the data set `data`.

    `overrides` have the form `data.shots=4` or `("data.shots", 4)`, and `data.source=NAME` is equivalent to `data`. If
    `recipe` is only the name of a method, `protocol` (such as `base_to_new`) selects one of the method's recipes. For a
    protocol, `calibrate` is false by default, as published.

    Raises AdaptError for an unknown recipe (with the nearest names), broken YAML, an unknown key (with the nearest
    valid key), an invalid value, and missing data.
    """
    file, overrides = find_recipe(str(recipe), protocol), tuple(overrides)
    changed = source_of({}, overrides)
    if None not in (data, changed) and data != changed:
        raise AdaptError(
            f"data.source is {brief(changed)}, but the data is also given as {data!r}: leave out one of the two"
        )
    if data == "":
        raise AdaptError("the data is ''; expected the name of a data set, a folder or a .csv")
    source = file.source(overrides) if data is None else data
    if source is None:
        raise file.needs_data()
    if not isinstance(source, str):
        return build_recipe(file.settings | {"data": {"source": source}}, file.name)  # raises
    raw = ({} if protocol is None else {"calibrate": False}) | file.on_data(source)
    chosen_for = raw.get("backbone", Recipe.model_fields["backbone"].default)
    for override in overrides:
        set_key(raw, override)
    one_length(raw, overrides)
    add_the_sets_own(raw, source)
    built = build_recipe(raw, file.name)
    if isinstance(chosen_for, str) and is_bundled(chosen_for) and not is_bundled(built.backbone):
        _warn_of_settings(file.name, chosen_for, built.backbone)
    return built


@cache
def _warn_of_settings(name: str, chosen_for: str, backbone: str) -> None:
    logger.warning(
        "the settings of %s were chosen for %s, a small bundled model (mini-clip has 5 million parameters): for %s "
        "they are only a start",
        name, chosen_for, backbone,
    )  # fmt: skip


def build_recipe(raw: dict[str, object], where: str) -> Recipe:
    """Return the recipe for a dictionary of settings. Raises AdaptError, naming `where`, for an invalid setting."""
    from adapt import methods

    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise AdaptError(explain(Recipe, error, where, "`adapt recipes --schema`")) from None
    method = methods.find(recipe.method["name"])
    try:
        method.Config.model_validate(recipe.method_config)
    except ValidationError as error:
        raise AdaptError(explain(method.Config, error, f"{where}: method", f"`adapt methods {method.name}`")) from None
    return recipe
