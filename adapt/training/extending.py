"""More classes for an adapter: its run is repeated, or continued, on its own images and on those of the new classes.

Such a run, like one of `adapt label`, has a list of its images in its folder, which its recipe names as the data.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from adapt.common.disk import write_csv
from adapt.common.errors import AdaptError, about
from adapt.data.bags import has_bags
from adapt.data.check import all_facts
from adapt.data.checks import Looked, contradictions
from adapt.data.decoding.files import parted
from adapt.data.readers.rows import Listed, check_listed_once
from adapt.data.split import PARTS, Split
from adapt.formats.adapter import read_header
from adapt.loading import located, method_of
from adapt.methods.base.traits import chosen_setting
from adapt.recipe import DataSection, Recipe, build_recipe
from adapt.recipe.file import read_file
from adapt.training.run_recipe import listed_data

logger = logging.getLogger("adapt")

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
    views = any(item.view_names for item in split.items())
    bags, captions = views or has_bags(split.items()), any(item.label.caption for item in split.items())
    rows = [
        {
            "path": image.lstrip("/"),
            "label": item.answer,
            "split": "train" if part == "unlabelled" else part,
            "domain": item.domain,
            "group": item.group,
        }
        | ({"item": f"{part} {number}"} if bags else {})
        | ({"view": view} if views else {})
        | ({"caption": item.label.caption} if captions else {})
        for part in PARTS
        for number, item in enumerate(getattr(split, part), 1)
        for image, view in zip_longest(item.paths, item.view_names, fillvalue="")
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


def extended(run: Path, more: DataSection, out: Path) -> Recipe:
    """Return the recipe that extends the adapter of `run` by the classes of `more`, and list all images in `out`.

    A method without gradient steps is fitted to all images, exactly as if it had been trained on them from the start. A
    method whose tensors belong to no class goes on from the adapter. Raises AdaptError for other methods, for data that
    have another task than classification, and if the images of the run are not there any more.
    """
    recipe = recipe_of(run)
    method = recipe.new_method()
    goes_on = recipe.train is not None
    if goes_on and ((setting := chosen_setting(method)) or method.per_class or method.begins_anew):
        of_classes = "learns tensors for each class by gradient steps"
        why = f"chooses {setting} for the classes that it was trained on" if setting else of_classes
        raise AdaptError(
            f"{method.name} with these settings {why}, and cannot be extended: train it on all classes, or use a "
            "method in closed form, such as gda, or one whose tensors belong to no class, such as lora"
        )
    # all classes and domains of the new data, though the run may have learned a part of its own
    whole = {"classes": "all", "leave_out": None}
    new = recipe.data.model_copy(update={"source": more.source, "root": more.root, "names": more.names} | whole)
    with about("the run's own data cannot be read, which an extension needs too"):
        known = listed_data(recipe)
    split = _joined(known, listed_data(recipe.model_copy(update={"data": new}), known=known.class_names))
    if (out / "recipe.yaml").exists():
        raise AdaptError(f"{out} already contains a run: choose another --out")
    changes: dict[str, object] = {}
    if goes_on:  # with what the run's training set, such as the names of views
        file, anew = located(run), method.config.set_by_training
        earlier = method_of(read_header(file), file)
        ours, theirs = (each.config.model_dump(mode="json", exclude=anew) for each in (method, earlier))
        learned = {key: value for key, value in theirs.items() if ours[key] != value}
        changes = {"start": str(run), "method": recipe.method | learned}
    out.mkdir(parents=True, exist_ok=True)
    write_list(split, out / LIST)
    return on_list(recipe, out / LIST, split.turned, **changes)


def _joined(known: Split, new: Split) -> Split:
    """Return the images of two data sets as one, with the classes of both. Warns of equal images of two classes.

    Raises AdaptError without a new class, and if a file is of two classes, parts, entities or domains.
    """
    for split in (known, new):
        check_listable(split)
    names = (*known.class_names, *(name for name in new.class_names if name not in known.class_names))
    if len(names) == len(known.class_names):
        raise AdaptError(f"{new.name} has no class that the run does not know: give images of further classes")
    if known.turned != new.turned:
        raise AdaptError(f"{known.name} and {new.name} differ in whether photographs are turned by EXIF: set data.exif")
    parts: dict[str, Any] = {part: getattr(known, part) + getattr(new, part) for part in PARTS}
    joined = replace(known, name=new.name, class_names=names, ratios=None, root="", **parts)
    rows = [Listed(item, part) for part in PARTS for item in parts[part]]
    check_listed_once(rows, f"{known.name} and {new.name}")
    for found in contradictions(Looked(joined, all_facts([*joined.items(), *joined.unlabelled]), {}, (), ())):
        logger.warning("%s", found.line)
    return joined
