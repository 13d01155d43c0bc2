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

    `paths` have the forms of `adapt.data.decoding.files`: one image, or as many as the task needs. Without a path the
    `text` takes the image's place, and a model learns from its features; with a path it is a text about the image.
    `domain` is "" if there are none. Images of one `group`, such as photographs of one object, are more alike than
    others of their class; "" if none is named.

    A `turned` image is turned upright by its EXIF orientation, as people's own photographs are; others are taken as
    they are stored. A trained model keeps to what it learned from.
    """

    paths: tuple[str, ...]
    label: Label
    domain: str = ""
    group: str = ""
    text: str = ""
    turned: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, *, domain: str = "", group: str = "", turned: bool = False, **cells: Any) -> Item:
        """Return the item of a line in a list, by the names of its columns: `Item.of(path="a.png", label="cat")`.

        Raises AdaptError for columns that no task reads together, and for a value that is no label.
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
        """The name for lists and messages."""
        return self.path or self.text

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it needs, including those of its label."""
        return self.paths + self.label.files

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of its classes: one, several, or none if its task has no classes."""
        return self.label.class_names

    @property
    def stratum(self) -> str:
        """The stratum by which shots, folds and parts are balanced."""
        return self.label.stratum

    @property
    def unit(self) -> str:
        """The entity that it shows, if its label names one, such as a product; else ""."""
        return self.label.unit

    @property
    def kept_with(self) -> str:
        """The name of what must stay together: its entity or its group; an image without one is by itself."""
        return self.unit or self.group or self.name

    @property
    def answer(self) -> str:
        """The right answer in words: the name of its class, the names of several, a number, a text."""
        return self.label.words or (self.text if self.paths else "")

    def labelled(self, label: Label) -> Item:
        """Return the same files with another label."""
        return replace(self, label=label)

    def renamed(self, names: Mapping[str, str]) -> Item:
        """Return the same with other names for its classes."""
        return replace(self, label=self.label.renamed(names))

    def identity(self, path: str, root: str = "") -> dict[str, object]:
        """Return what fingerprints depend on: `path` for the item's own, and the label's files below `root`."""
        return {"path": path, "text": self.text, self.task.name: self.label.identity(root)}
