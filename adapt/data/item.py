"""One labelled item of a data set: an image, several images, or a text; its label, and the kinds of labels.

A row of a list becomes an item by its columns, which say what kind of label it has (see `reading`).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar, cast

from adapt.common.errors import AdaptError
from adapt.common.listing import Listing
from adapt.common.shown import SEPARATOR
from adapt.data.decoding.files import parted, sample_of

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.chats import Chat

T = TypeVar("T")
L = TypeVar("L", bound="Label")
Cell: TypeAlias = "str | float | Sequence[str] | Chat"  # of a row in a list; names of classes may come as a sequence


@dataclass(frozen=True)
class Label:
    """The base class of labels. Each task derives a small frozen dataclass that stores what is known about an item."""

    task: ClassVar[LabelKind]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the item's classes."""
        return ()

    @property
    def stratum(self) -> str:
        """The name, usually of a class, by which few-shot samples, folds and data splits are stratified."""
        return SEPARATOR.join(self.class_names)

    @property
    def unit(self) -> str:
        """The name of the item's entity, or "" if there is none; items of an entity stay in the same data split."""
        return ""

    @property
    def caption(self) -> str:
        """A description of the item's image, or "" if there is none."""
        return ""

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the item's files other than its images, such as a mask."""
        return ()

    @property
    def words(self) -> str:
        """The label as human-readable text."""
        return SEPARATOR.join(self.class_names)

    @property
    def columns(self) -> dict[str, str]:
        """A dictionary of further values of the label besides the answer, such as a question, by column name."""
        return {}

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return a copy of the label with new class names; `names` is a dictionary from old to new names."""
        return self

    def identity(self, root: str) -> dict[str, object] | None:
        """Return plain data that identify the label together with its class numbers; paths are relative to `root`."""
        return asdict(self)


@dataclass(frozen=True)
class NamedLabel(Label):
    """A label that contains the name of one class."""

    name: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return (self.name,)

    def renamed(self, names: Mapping[str, str]) -> Self:
        return replace(self, name=names[self.name])

    def identity(self, root: str) -> dict[str, object]:
        return asdict(self) | {"name": None}  # the class's number identifies it, whatever its name


class LabelKind:
    """The part of a task that data need: the labels of items, how they are read, and what a data set of them is.

    The base class of `adapt.tasks.Task`, which adds how the labels are learned, answered and scored.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """A description in one line, for lists."""
    label_type: ClassVar[type[Label]]
    """The type of the task's labels."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """The columns that a list of its items must have; a name may end in `*`, for any number of columns."""
    may_have: ClassVar[frozenset[str]] = frozenset()
    """Optional columns that the task reads."""
    images: ClassVar[tuple[str, ...]] = ("path",)
    """The columns of an item's images."""
    files: ClassVar[frozenset[str]] = frozenset()
    """The columns of files besides the images, such as a mask."""
    noun: ClassVar[str] = "images"
    """The noun for its items in counts."""
    items_are: ClassVar[str] = "images"
    """The description of its items in messages."""
    classes_are: ClassVar[str] = "classes"
    """The noun for its classes; "" for a task without classes."""
    learns_unseen: ClassVar[bool] = False
    """Whether a class may have no training image."""
    rows_of_chats: ClassVar[int] = 1
    """The rows of tokens that a training step reads for each item, of a task of conversations."""
    once_an_image: ClassVar[bool] = True
    """Whether an image may be listed only once, so that a second label for it is a mistake."""
    mixes_texts: ClassVar[bool] = False
    """Whether an item may lack an image beside others that have some."""
    takes_bags: ClassVar[bool] = False
    """Whether an item may have any number of images, all of one thing."""
    divisible: ClassVar[bool] = True
    """Whether a data set can be restricted to some of its classes."""
    one_class: ClassVar[bool] = True
    """Whether each item has one class, which is its answer, so that probabilities can be calibrated."""
    several: ClassVar[bool] = False
    """Whether an item may have several classes, whose probabilities are calibrated each by itself."""
    scored: ClassVar[bool] = True
    """Whether there are labels that answers can be scored by."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label_type" in vars(cls):
            cls.label_type.task = cls()

    # rows

    def read(self, cells: Mapping[str, Cell], where: str) -> Label:
        """Return the label in the cells of a row. Raises AdaptError, prefixed with `where`, for an invalid value."""
        raise NotImplementedError

    def completed(self, labels: Sequence[Any]) -> Sequence[Label]:
        """Return the labels of a data set after filling in values that depend on all labels, such as a rarest class."""
        return labels

    def class_names(self, labels: Iterable[Label]) -> tuple[str, ...]:
        """Return the sorted names of all classes in `labels`, for a data set that does not list its class names."""
        return tuple(sorted({name for label in labels for name in label.class_names}))

    def lacks_label(self, cells: Mapping[str, Cell]) -> bool:
        """Return whether the image of a row is unlabelled, because the row leaves out what the label is read from."""
        return False

    # a data set

    def check(self, items: Sequence[Item], name: str) -> None:
        """Raise AdaptError if the labels of the data set `name` contradict each other."""

    def facts(self, items: Sequence[Item]) -> Sequence[str]:
        """Return lines about the items for `adapt data check`, beyond their number."""
        return ()

    def nothing_to_learn(self, items: Sequence[Item], class_names: Sequence[str]) -> str:
        """Return why the labels of the training `items` leave nothing to distinguish, or ""."""
        one = len(class_names) == 1 and self.divisible
        return f"only one class, {class_names[0]!r}: there is nothing to distinguish" if one else ""

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the class numbers of the items `(n,)`, indices in `class_names`; of several classes bool `(n, c)`."""
        import torch

        place = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([place[item.label.class_names[0]] for item in items], dtype=torch.long)

    def shares(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the class distributions `(n, c)` of the items, one-hot by default; of several classes each has a 1."""
        import torch
        import torch.nn.functional as F

        return F.one_hot(self.numbers(items, class_names), len(class_names)).to(torch.float64)

    def values(self, items: Sequence[Item]) -> Tensor | None:
        """Return the numeric labels of the items `(n,)`, such as quality scores, or None for a task without numbers."""
        return None

    def labels(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the labels of the items, `(b,)` or `(b, c)`, which are class numbers by default."""
        return self.numbers(items, class_names)

    # as conversations

    def chat(self, item: Item, question: str) -> Chat:
        """Return an item as a conversation that ends with its right answer, for models that answer in words.

        `question` is the model's own, which asks for the class of an image.
        """
        from adapt.chats import Chat

        return Chat.about(question, item.answer, len(item.paths))

    def images_of_chats(self, item: Item, images: Sequence[T]) -> Sequence[Sequence[T]]:
        """Return the images, or what stands for them, that each conversation of `chats` reads: by default all."""
        return [images] * len(self.chats(item, ""))

    def chats(self, item: Item, question: str) -> Sequence[Chat]:
        """Return all conversations of an item, with each answer that is scored; by default the only one."""
        return (self.chat(item, question),)


@dataclass(frozen=True)
class Item:
    """One labelled item of data: one or more images, or a text instead of images, with a `label` such as a class.

    `paths` has one image path, as many as the task needs, or those of a bag (see `adapt.data.bags`), in the format of
    `adapt.data.decoding.files`. If `paths` is empty, a model is trained on the features of `text` instead of image
    features; otherwise `text` is about the image. `domain` is "" if the data has no domains. `group` names images that
    are more alike than other images of their class, such as photographs of one object, and is "" if there is no group.

    If `turned`, images are turned upright by their EXIF orientation, as is the default for users' own photographs;
    otherwise images are used as stored. A trained model always reads images in the same way as its training images.
    `view_names` are the names of the views that the images of a bag show, such as front and side, if they have names.
    """

    paths: tuple[str, ...]
    label: Label
    domain: str = ""
    group: str = ""
    text: str = ""
    turned: bool = field(default=False, compare=False)
    view_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, *, domain: str = "", group: str = "", turned: bool = False, **cells: Any) -> Item:
        """Return an item made from the cells of a table row, given by column: `Item.of(path="a.png", label="cat")`.

        Raises AdaptError if no task has this combination of columns, and for a value that is not a valid label.
        """
        task = reading(frozenset(cells))
        paths = tuple(cells[column] for column in task.images if cells.get(column))
        text = cells.get("text", "")
        return cls(paths, task.read(cells, paths[0] if paths else text), domain, group, text, turned)

    @property
    def task(self) -> LabelKind:
        """The part of the item's task that data need; `adapt.tasks.of` returns the task itself."""
        return self.label.task

    @property
    def path(self) -> str:
        """The path of the first image; "" if the item is a text."""
        return self.paths[0] if self.paths else ""

    def __fspath__(self) -> str:
        """Return the path of the first image, so that an item stands for it; raises AdaptError for a text."""
        if not self.paths:
            raise AdaptError(f"the item with the text {self.text!r} has no image: give an item with an image")
        return self.paths[0]

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
        """The entity, the group or else the item's name; items that share it stay together (`adapt.data.split`)."""
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
        return self.labelled(no_label())

    def renamed(self, names: Mapping[str, str]) -> Item:
        """Return a copy of the item with its class names replaced by `names`, a mapping from old to new names."""
        return replace(self, label=self.label.renamed(names))

    def identity(self, path: str, root: str = "") -> dict[str, object]:
        """Return the item's data for a split's fingerprint: `path`, the text, and the label with paths below `root`."""
        others = [os.path.relpath(each, os.path.dirname(self.path)) for each in self.paths[1:]]
        bag = {"others": others} if others else {}
        views = {"views": self.view_names} if self.view_names else {}
        return {"path": path, "text": self.text, self.task.name: self.label.identity(root), **bag, **views}


def items_id(items: Sequence[Item], captions: bool = False) -> str:
    """Return a hash (16 hex digits) of the files and class numbers of `items`, in order; folders are ignored.

    Of a file, such as an image or a mask, its name, its size, and its first and last 4 KiB count (see `sample_of`).
    Classes are numbered in the order in which they first occur, so the hash does not depend on class names. Captions
    change what is learned, not what is tested, and count if `captions` is true.
    """
    digest, numbers, samples = hashlib.sha256(), dict[str, int](), dict[str, bytes]()
    for item in items:
        own = [numbers.setdefault(name, len(numbers)) for name in item.class_names]
        known = item.identity(item.path.rsplit("/", 1)[-1], os.path.dirname(item.path)), own
        digest.update(f"{json.dumps(known)}{item.label.caption * captions}\n".encode(errors="surrogateescape"))
        for path in item.files:
            file = parted(path)[0]
            if file not in samples:
                samples[file] = sample_of(file)
            digest.update(samples[file])
    return digest.hexdigest()[:16]


# columns that say where an item comes from, not what it is
PLACES = frozenset({"path", "text", "split", "domain", "group", "item", "view", "x0", "y0", "x1", "y1"})

TASKS: Listing[Any] = Listing(
    "adapt.tasks",
    [str(Path(__file__).parent.parent / "tasks")],
    "adapt.tasks",
    lambda: importlib.import_module("adapt.tasks.base").Task,  # tasks stand above data, and are imported when asked for
    "task",
    frozenset({"base"}),
)

# the columns that the tasks need, so that only those tasks are imported whose columns a list has
_NEEDS = {
    "boxes": {"boxes"}, "classes": {"label"}, "contrasts": {"rejected_images", "chat", "rejected"},
    "conversations": {"chat"}, "labels": {"labels"}, "maps": {"mask", "label"}, "pairs": {"path", "text"},
    "preferences": {"chat", "rejected"}, "questions": {"question", "label"}, "records": {"path", "entity", "text"},
    "targets": {"target"}, "translations": {"text", "translation"},
}  # fmt: skip


def kind_of(items: Iterable[Item]) -> LabelKind:
    """Return the part of the task of all `items` that data need. Raises AdaptError if there are no items."""
    for item in items:
        return item.task
    raise AdaptError("there are no images, because this split of the data is empty: give at least one image")


def no_label() -> Label:
    """Return the label of an item without annotations."""
    return reading(frozenset({"path"})).read({}, "")


@cache
def reading(columns: frozenset[str]) -> LabelKind:
    """Return the task that fits the columns of a data list. Raises AdaptError if no task or more than one task fits."""
    own = columns - PLACES
    files = [name for name in TASKS.files() if _NEEDS.get(name, set()) <= columns]
    claiming = TASKS.claiming(lambda task: _claims(task.label_type.task, columns, own), files)
    claims = [task.label_type.task for task in claiming]
    most = max((len(task.needs) for task in claims), default=0)
    fitting = [task for task in claims if len(task.needs) == most]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(sorted(columns))
    if fitting:
        tasks = " and ".join(task.name for task in fitting)
        raise AdaptError(f"the columns {listed} fit the tasks {tasks}: uninstall the package of one of these tasks")
    forms = []
    for task in _kinds():
        optional = f" (optionally {', '.join(sorted(task.may_have))})" if task.may_have else ""
        forms.append(f"{', '.join(sorted(task.needs)) or 'nothing more'}{optional} for {task.title}")
    raise AdaptError(
        f"no task reads the columns {listed} together: expected path, or text instead, and {'; '.join(forms)}"
    )


def known_columns() -> list[str]:
    """Return the columns that the data lists of all tasks may have; `*` at the end of a name stands for any ending."""
    return sorted(PLACES.union(*(task.needs | task.may_have for task in _kinds())))


def unknown_columns(columns: Sequence[str]) -> list[str]:
    """Return the given columns that no task's data list may have."""
    known = known_columns()
    return [column for column in columns if not any(_is(column, each) for each in known)]


def _kinds() -> list[LabelKind]:
    return [task.label_type.task for task in TASKS.classes()]


def _claims(task: LabelKind, columns: frozenset[str], own: frozenset[str]) -> bool:
    needed = all(any(_is(column, each) for column in columns) for each in task.needs)
    return needed and all(any(_is(column, each) for each in task.needs | task.may_have) for column in own)


def _is(column: str, pattern: str) -> bool:
    return column.startswith(pattern[:-1]) if pattern.endswith("*") else column == pattern


def labels_of(items: Sequence[Item], kind: type[L]) -> list[L]:
    """Return the labels of `items`, all of which must have labels of the type `kind`."""
    return [cast("L", item.label) for item in items]


def optional(cells: Mapping[str, Cell], column: str) -> str:
    """Return the text in a column of a row, or "" if the column is empty or missing."""
    return str(cells.get(column) or "")


def filled(cells: Mapping[str, Cell], column: str, where: str) -> str:
    """Return the text in a column of a row. Raises AdaptError, prefixed with `where`, if the text is empty."""
    if not cells[column]:
        raise AdaptError(f"{where}: the {column} is empty: fill in a value")
    return str(cells[column])


def number(cell: Cell, where: str, column: str) -> float:
    """Return the number in a cell. Raises AdaptError, prefixed with `where`, if the cell is not a finite number."""
    try:
        value = float(cell)  # type: ignore[arg-type]  # a sequence is no number either
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AdaptError(f"{where}: the {column} is {cell!r}; expected a number")
    return value
