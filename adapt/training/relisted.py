"""The recipe of a run on a list of images of its own, for runs on more, or other, images than it began with."""

from __future__ import annotations

from pathlib import Path

from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError
from adapt.data.bags import has_bags
from adapt.data.decoding.files import parted
from adapt.data.split import PARTS, Split
from adapt.recipe import Recipe, build_recipe
from adapt.recipe.file import read_file

RECIPE, LIST = "recipe.yaml", "images.csv"  # in the folder of a run
ROOT = "/"  # where the paths in a list start from


def recipe_of(run: Path) -> Recipe:
    """Return the recipe of the run in the folder `run`. Raises AdaptError if there is none."""
    file = run / RECIPE
    if not file.is_file():
        raise AdaptError(f"{run} is not the folder of a run, whose images are needed: give the folder of a run")
    return build_recipe(read_file(file, str(file)).settings, str(file))


def write_list(split: Split, path: Path) -> None:
    """Write all images of `split` to a list, whose paths start from the root of the file system.

    Unlabelled images are training images without a label, so that a label can be filled in.

    Raises AdaptError for labels other than classes, and for regions of images.
    """
    check_listable(split)
    bags = has_bags(split.items())
    rows = [
        {
            "path": image.lstrip("/"),
            "label": item.answer,
            "split": "train" if part == "unlabelled" else part,
            "domain": item.domain,
            "group": item.group,
        }
        | ({"item": f"{part} {number}"} if bags else {})
        for part in PARTS
        for number, item in enumerate(getattr(split, part), 1)
        for image in item.paths
    ]
    write_csv(path, rows)


def check_listable(split: Split) -> None:
    """Raise AdaptError if the images of `split` have another kind of label than one class, or are regions."""
    if split.task.needs != {"label"}:
        raise AdaptError(f"{split.name} has {split.task.title}; expected one class per image")
    region = next((item for item in (*split.items(), *split.unlabelled) if parted(item.path)[1] is not None), None)
    if region is not None:
        raise AdaptError(f"{split.name} has regions of images, such as {region.name}; expected whole images")


def on_list(recipe: Recipe, path: Path, turned: bool, **changes: object) -> Recipe:
    """Return `recipe` with the images in the list `path` as its data, and with `changes` to its other settings."""
    data = recipe.data.model_dump(mode="json") | {
        "source": str(path), "root": ROOT, "names": None, "shots": None, "classes": "all", "leave_out": None,
        "rest": "left out", "exif": "turned" if turned else "stored",
    }  # fmt: skip
    return build_recipe(recipe.model_dump(mode="json") | {"data": data} | changes, "the recipe of the run")
