"""One labelled item of a data set: an image, several images, or a text; and a hash of many items."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adapt import tasks
from adapt.data.decoding.files import parted, sample_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapt.tasks.base import Label, Task


@dataclass(frozen=True)
class Item:
    """One labelled item of data: one or more images, or a text instead of images, with a `label` such as a class.

    `paths` has one image path, as many as the task needs, or those of a bag (see `adapt.data.bags`), in the format of
    `adapt.data.decoding.files`. If `paths` is empty, a model is trained on the features of `text` instead of image
    features; otherwise `text` is about the image. `domain` is "" if the data has no domains. `group` names images that
    are more alike than other images of their class, such as photographs of one object, and is "" if there is no group.

    If `turned`, images are turned upright by their EXIF orientation, as is the default for users' own photographs;
    otherwise images are used as stored. A trained model always reads images in the same way as its training images.
    """

    paths: tuple[str, ...]
    label: Label
    domain: str = ""
    group: str = ""
    text: str = ""
    turned: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, *, domain: str = "", group: str = "", turned: bool = False, **cells: Any) -> Item:
        """Return an item made from the cells of a table row, given by column: `Item.of(path="a.png", label="cat")`.

        Raises AdaptError if no task has this combination of columns, and for a value that is not a valid label.
        """
        task = tasks.reading(frozenset(cells))
        paths = tuple(cells[column] for column in task.images if cells.get(column))
        text = cells.get("text", "")
        return cls(paths, task.read(cells, paths[0] if paths else text), domain, group, text, turned)

    @property
    def task(self) -> Task:
        """The task that the item's label belongs to, such as classification."""
        return self.label.task

    @property
    def path(self) -> str:
        """The path of the first image; "" if the item is a text."""
        return self.paths[0] if self.paths else ""

    @property
    def name(self) -> str:
        """The name of the item in lists and messages: the path of the image, or the text."""
        return self.path or self.text

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of all files that the item needs: the images, and files of the label such as a mask."""
        return self.paths + self.label.files

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the item's classes: one name, several names, or no name, such as for a task without classes."""
        return self.label.class_names

    @property
    def stratum(self) -> str:
        """The name, usually the class, by which few-shot samples, folds and train/val/test splits are stratified."""
        return self.label.stratum

    @property
    def unit(self) -> str:
        """The entity that the image shows, such as a product, or "" if the item's label names no entity."""
        return self.label.unit

    @property
    def kept_with(self) -> str:
        """The entity, the group or else the item's name; items that share this name stay in the same split or fold."""
        return self.unit or self.group or self.name

    @property
    def answer(self) -> str:
        """The correct answer in words, such as the name of the class, names of several classes, a number, or a text."""
        return self.label.words or (self.text if self.paths else "")

    def labelled(self, label: Label) -> Item:
        """Return a copy of the item with the label `label`."""
        return replace(self, label=label)

    def without_label(self) -> Item:
        """Return a copy of the item without its label."""
        return self.labelled(tasks.no_label())

    def renamed(self, names: Mapping[str, str]) -> Item:
        """Return a copy of the item with its class names replaced by `names`, a mapping from old to new names."""
        return replace(self, label=self.label.renamed(names))

    def identity(self, path: str, root: str = "") -> dict[str, object]:
        """Return the item's data for a split's fingerprint: `path`, the text, and the label with paths below `root`."""
        others = [os.path.relpath(each, os.path.dirname(self.path)) for each in self.paths[1:]]
        bag = {"others": others} if others and self.task.takes_bags else {}
        return {"path": path, "text": self.text, self.task.name: self.label.identity(root), **bag}


def items_id(items: Sequence[Item]) -> str:
    """Return a hash (16 hex digits) of the files and class numbers of `items`, in order; folders are ignored.

    Of a file, such as an image or a mask, its name, its size, and its first and last 4 KiB count (see `sample_of`).
    Classes are numbered in the order in which they first occur, so the hash does not depend on class names.
    """
    digest, numbers, samples = hashlib.sha256(), dict[str, int](), dict[str, bytes]()
    for item in items:
        own = [numbers.setdefault(name, len(numbers)) for name in item.class_names]
        known = item.identity(item.path.rsplit("/", 1)[-1], os.path.dirname(item.path)), own
        digest.update(f"{json.dumps(known)}\n".encode(errors="surrogateescape"))
        for path in item.files:
            file = parted(path)[0]
            if file not in samples:
                samples[file] = sample_of(file)
            digest.update(samples[file])
    return digest.hexdigest()[:16]
