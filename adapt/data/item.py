"""One labelled item of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from adapt import tasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapt.tasks.base import Label, Task


@dataclass(frozen=True)
class Item:
    """Files, or a text in their place, and what is known of them: the `label`, which belongs to one task.

    `paths` are of `adapt.data.decoding.files`'s forms: one image, or as many as the task asks for. Without a path the
    `text` stands in the image's place, and a model learns from its features; beside a path it is a text about the
    image. `domain` is "" where there are none. Images of one `group`, such as photographs of one object, are more alike
    than others of their class; "" where none is named.

    A `turned` image is turned upright by its EXIF orientation, as people's own photographs are; others are taken as
    they are stored. A model that has learned keeps to what it learned from.
    """

    paths: tuple[str, ...]
    label: Label
    domain: str = ""
    group: str = ""
    text: str = ""
    turned: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, *, domain: str = "", group: str = "", turned: bool = False, **cells: Any) -> Item:
        """The item that a line of a list says, by the names of its columns: `Item.of(path="a.png", label="cat")`.

        AdaptError for columns that no task reads together, and for a value that makes no label.
        """
        task = tasks.reading(frozenset(cells))
        paths = tuple(cells[column] for column in task.images if cells.get(column))
        text = cells.get("text", "")
        return cls(paths, task.read(cells, paths[0] if paths else text), domain, group, text, turned)

    @property
    def task(self) -> Task:
        """The task that its label belongs to."""
        return self.label.task

    @property
    def path(self) -> str:
        """The first image; "" where a text stands in its place."""
        return self.paths[0] if self.paths else ""

    @property
    def name(self) -> str:
        """What lists and messages call it."""
        return self.path or self.text

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it needs, those of its label among them."""
        return self.paths + self.label.files

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of its classes: one, several, or none where its task has no classes."""
        return self.label.class_names

    @property
    def stratum(self) -> str:
        """What shots, folds and parts are drawn by: as many of each."""
        return self.label.stratum

    @property
    def unit(self) -> str:
        """The entity that it is of, where its label names one, such as a product; else ""."""
        return self.label.unit

    @property
    def kept_with(self) -> str:
        """What must not be divided: its entity or its group, an image without one being by itself."""
        return self.unit or self.group or self.name

    @property
    def answer(self) -> str:
        """What is right for it, in words: the name of its class, the names of several, a number, a text."""
        return self.label.words or (self.text if self.paths else "")

    def labelled(self, label: Label) -> Item:
        """The same files with another label."""
        return replace(self, label=label)

    def renamed(self, names: Mapping[str, str]) -> Item:
        """The same with other names for its classes."""
        return replace(self, label=self.label.renamed(names))

    def identity(self, path: str, root: str = "") -> dict[str, object]:
        """What fingerprints depend on: `path` in place of the item's own, and files of the label below `root`."""
        return {"path": path, "text": self.text, self.task.name: self.label.identity(root)}
