"""One labelled item of a data set: an image, several images, or a text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adapt import tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapt.tasks.base import Label, Task


@dataclass(frozen=True)
class Item:
    """One labelled item of data: images, or a text in their place, with a `label` for one task (such as a class).

    `paths` are image paths as `adapt.data.decoding.files` reads them: one, or as many as the task needs. Without paths,
    a model learns from the features of `text` in place of an image; with paths, `text` is about the image. `domain` is
    "" if the data has no domains. Images of one `group`, such as photographs of one object, are more alike than others
    of their class; it is "" if no group is named.

    A `turned` image is turned upright by its EXIF orientation, as people's own photographs are; other images are taken
    as they are stored. A trained model always reads images as its training images were read.
    """

    paths: tuple[str, ...]
    label: Label
    domain: str = ""
    group: str = ""
    text: str = ""
    turned: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, *, domain: str = "", group: str = "", turned: bool = False, **cells: Any) -> Item:
        """Return the item of one line of a list, by the names of its columns: `Item.of(path="a.png", label="cat")`.

        Raises AdaptError if no task reads this combination of columns, and for a value that is not a valid label.
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
        """The name of the item in lists and messages: its path, or its text."""
        return self.path or self.text

    @property
    def files(self) -> tuple[str, ...]:
        """All files that the item needs: its images, and files of its label such as a mask."""
        return self.paths + self.label.files

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the item's classes: one, several, or none if its task has no classes."""
        return self.label.class_names

    @property
    def stratum(self) -> str:
        """The name, usually the class, by which few-shot samples, folds and parts of a split are balanced."""
        return self.label.stratum

    @property
    def unit(self) -> str:
        """The entity that the image shows, such as a product, if the item's label names one; else ""."""
        return self.label.unit

    @property
    def kept_with(self) -> str:
        """The name shared by items that must stay in the same part or fold: the entity, the group, or its own name."""
        return self.unit or self.group or self.name

    @property
    def answer(self) -> str:
        """The right answer in words: the name of the class, names of several classes, a number, or a text."""
        return self.label.words or (self.text if self.paths else "")

    def labelled(self, label: Label) -> Item:
        """Return a copy of the item with another label."""
        return replace(self, label=label)

    def renamed(self, names: Mapping[str, str]) -> Item:
        """Return a copy of the item with its classes renamed by `names`."""
        return replace(self, label=self.label.renamed(names))

    def identity(self, path: str, root: str = "") -> dict[str, object]:
        """Return what a split's fingerprint depends on: `path`, the text, and the label with files below `root`."""
        return {"path": path, "text": self.text, self.task.name: self.label.identity(root)}
