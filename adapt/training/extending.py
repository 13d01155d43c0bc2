"""More classes for an adapter: its run is repeated, or continued, on its own images and on those of the new classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapt.data.bags import has_bags
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.disk import write_csv
from adapt.errors import AdaptError
from adapt.methods.base.traits import chosen_setting
from adapt.recipe import DataSection, Recipe, build_recipe
from adapt.recipe.file import read_file
from adapt.training.run_recipe import listed_data

LIST = "images.csv"  # in the new run


def extended(run: Path, more: DataSection, out: Path) -> Recipe:
    """Return the recipe that extends the adapter of `run` by the classes of `more`, and list all images in `out`.

    A method without gradient steps is fitted to all images, exactly as if it had been trained on them from the start. A
    method whose tensors belong to no class goes on from the adapter. Raises AdaptError for other methods, for data that
    have another task than classification, and if the images of the run are not there any more.
    """
    file = run / "recipe.yaml"
    if not file.is_file():
        raise AdaptError(f"{run} is not the folder of a run, whose images an extension needs: give the folder of a run")
    recipe = build_recipe(read_file(file, str(file)).settings, str(file))
    method = recipe.new_method()
    goes_on = recipe.train is not None
    if goes_on and (method.per_class or method.begins_anew or chosen_setting(method)):
        raise AdaptError(
            f"{method.name} with these settings learns tensors for each class by gradient steps, and cannot be "
            "extended: train it on all classes, or use a method in closed form, such as gda, or one whose tensors "
            "belong to no class, such as lora"
        )
    new = recipe.data.model_copy(update={"source": more.source, "root": more.root, "names": more.names})
    split = _joined(listed_data(recipe), listed_data(recipe.model_copy(update={"data": new})))
    if (out / "recipe.yaml").exists():
        raise AdaptError(f"{out} already contains a run: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / LIST, _rows(split))
    data = recipe.data.model_dump(mode="json") | {
        "source": str(out / LIST), "root": "/", "names": None, "shots": None, "classes": "all", "leave_out": None,
        "exif": "turned" if split.turned else "stored",
    }  # fmt: skip
    changes = {"data": data, "start": str(run) if goes_on else None}
    return build_recipe(recipe.model_dump(mode="json") | changes, "the extended recipe")


def _joined(known: Split, new: Split) -> Split:
    """Return the images of two data sets as one, with the classes of both. Raises AdaptError without a new class."""
    for split in (known, new):
        if split.task.needs != {"label"}:
            raise AdaptError(
                f"{split.name} has {split.task.title}; only one label per image can be extended by classes"
            )
    names = (*known.class_names, *(name for name in new.class_names if name not in known.class_names))
    if len(names) == len(known.class_names):
        raise AdaptError(f"{new.name} has no class that the run does not know: give images of further classes")
    if known.turned != new.turned:
        raise AdaptError(f"{known.name} and {new.name} differ in whether photographs are turned by EXIF: set data.exif")
    train, val, test = (one + other for one, other in zip(_parts(known), _parts(new), strict=True))
    return replace(known, name="extended", class_names=names, train=train, val=val, test=test, ratios=None)


def _parts(split: Split) -> tuple[tuple[Item, ...], ...]:
    return split.train, split.val, split.test


def _rows(split: Split) -> list[dict[str, str]]:
    """Return the rows of a list of all images, whose paths start from the root of the file system."""
    bags = has_bags(split.items())
    return [
        {"path": path.lstrip("/"), "label": item.answer, "split": part, "domain": item.domain, "group": item.group}
        | ({"item": f"{part} {number}"} if bags else {})
        for part, items in zip(("train", "val", "test"), _parts(split), strict=True)
        for number, item in enumerate(items, 1)
        for path in item.paths
    ]
