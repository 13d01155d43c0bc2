"""The base of tasks: the kind of label that items have, and how it is read, learned, answered and scored.

A task is a file in this package, or in another package with an entry point in the group `adapt.tasks`. Nothing outside
knows a task by its name: data, training, evaluation and commands use the task of the items at hand. This module does
not import torch, which takes seconds and is not needed to read data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from adapt.chats import Chat
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.base import Backbone
    from adapt.data.item import Item
    from adapt.data.split import Split
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method, Step, Terms, Training
    from adapt.models.base import Adapted

L = TypeVar("L", bound="Label")
T = TypeVar("T")

SEPARATOR = "|"  # between the names of several classes in one text
Cell = str | float | Sequence[str] | Chat  # of a row in a list; names of classes may come as a sequence


@dataclass(frozen=True)
class Label:
    """The base class of labels. Each task derives a small frozen dataclass that stores what is known about an item."""

    task: ClassVar[Task]

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


class Task:
    """The base class of all tasks. By default, each item has one class, and the logits of a model predict the class."""

    name: ClassVar[str]
    title: ClassVar[str]
    """A description in one line, for lists."""
    label_type: ClassVar[type[Label]]
    """The type of the task's labels."""
    backbones: ClassVar[frozenset[str]] = frozenset({"dual encoder"})
    """The kinds of backbones that can answer the task."""
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
    stays_whole: ClassVar[bool] = False
    """Whether all items of one image must be in the same part of the data."""
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
    example: ClassVar[str] = ""
    """The bundled data on which the contract suite and `adapt.testing` run; "" for none."""
    scored: ClassVar[bool] = True
    """Whether there are labels that answers can be scored by."""
    comparable: ClassVar[str] = ""
    """The reason why `recommend` does not compare methods on this task; "" if it does."""
    keeps_entities_together: ClassVar[bool] = False
    """Whether items of one entity follow each other in training, in the number that the method asks for."""
    has_summed_loss: ClassVar[bool] = True
    """Whether the loss of a batch is a mean over its items, or over what else `step.weight` counts, and compares none.

    A task with a `loss` or `step` of its own says so itself, or its batches are not divided by items among processes.
    """
    learns_from_features: ClassVar[bool] = True
    """Whether a step may take cached features instead of images."""

    _learned_as: ClassVar[frozenset[str] | None] = None
    """The tasks of which, or else of this one, a method must name one to learn it; None if it need name none."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label_type" in vars(cls):
            cls.label_type.task = cls()

    # reading

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

    def check(self, split: Split) -> None:
        """Raise AdaptError if the labels of a data set contradict each other."""

    def validates(self, model: Adapted) -> bool:
        """Return whether a model is scored on the validation items in addition to the test items."""
        return self.scored

    def facts(self, items: Sequence[Item]) -> Sequence[str]:
        """Return lines about the items for `adapt data check`, beyond their number."""
        return ()

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        """Raise AdaptError if `method` cannot learn from the training `items`."""

    def check_answers(self, model: Adapted) -> None:
        """Raise AdaptError if `model` was trained to give a different kind of answer than this task requires."""
        if model.answers.several:
            raise AdaptError(
                f"this {model.method.name} was trained for several classes per image, but the data has {self.title}: "
                "give a .csv with a column labels"
            )

    def check_tested(self, model: Adapted, items: Sequence[Item]) -> None:
        """Raise AdaptError, before any image is decoded, if `model` cannot be scored on `items`."""

    def check_backbone(self, backbone: Backbone) -> None:
        """Raise AdaptError if a backbone of this kind cannot do this task."""
        kind = backbone.kind
        if kind not in self.backbones:
            raise AdaptError(
                f"the data are {self.items_are}, but {backbone.describe()} is a {kind}: use a "
                f"{' or a '.join(sorted(self.backbones))}, or give data for a {kind}"
            )

    def check_model(self, model: Adapted, items: Sequence[Item]) -> None:
        """Raise AdaptError if `model` cannot do this task, or if the class of an item is not a class of `model`."""
        self.check_backbone(model.backbone)
        if self.classes_are and not model.class_names and model.backbone.kind == "dual encoder":
            raise AdaptError(
                f"the model has no classes, but the data has classes such as {items[0].answer!r}: give the class "
                "names to the model, as class_names or with --data-classes"
            )
        known = set(model.class_names)
        for item in items if known else ():
            if not known.issuperset(item.class_names):
                raise AdaptError(
                    f"{item.name} has the class {item.answer!r}, which is not a class of the model: wrap or load the "
                    "model with the class names of the data"
                )

    # learning

    def learned_by(self, method: Method | type[Method]) -> bool:
        """Return whether a method can learn this task; for a method class, whether some instance of the class can."""
        from adapt.methods.base import Method as Base
        from adapt.methods.base.traits import LearnedTokens, LearnsShares, has_trait, owns_prompts

        if self.name in method.tasks:
            return True
        if self._learned_as is not None:
            return not self._learned_as.isdisjoint(method.tasks)
        if self.classes_are:
            return method.learns_any_step or has_trait(method, LearnsShares)
        owns = has_trait(method, LearnedTokens) if isinstance(method, type) else owns_prompts(method)
        # a method that edits only class features cannot learn without classes
        edits = method.edits is not Base.edits if isinstance(method, type) else bool(method.touches)
        return method.learns_any_step and edits and not owns

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the class numbers of the items `(n,)`, which are indices of the items' classes in `class_names`."""
        import torch

        place = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([place[item.label.class_names[0]] for item in items], dtype=torch.long)

    def shares(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the class distributions of the items `(n, c)`, whose rows sum to 1 and are one-hot by default."""
        import torch
        import torch.nn.functional as F

        return F.one_hot(self.numbers(items, class_names), len(class_names)).to(torch.float64)

    def nothing_to_learn(self, items: Sequence[Item], class_names: Sequence[str]) -> str:
        """Return why the labels of the training `items` leave nothing to distinguish, or ""."""
        one = len(class_names) == 1 and self.divisible
        return f"only one class, {class_names[0]!r}: there is nothing to distinguish" if one else ""

    def values(self, items: Sequence[Item]) -> Tensor | None:
        """Return the numeric labels of the items `(n,)`, such as quality scores, or None for a task without numbers."""
        return None

    def labels(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return the labels of the items of a batch, `(b,)` or `(b, c)`, which are class numbers by default."""
        return self.numbers(items, class_names)

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> Step:
        """Return the `Step` of a batch, from which a method computes a loss; `inputs` are images or cached features."""
        return model.step(inputs).of(self, items)

    def chat(self, item: Item, question: str) -> Chat:
        """Return an item as a conversation that ends with its right answer, for models that answer in words.

        `question` is the model's own, which asks for the class of an image.
        """
        return Chat.about(question, item.answer, len(item.paths))

    def images_of_chats(self, item: Item, images: Sequence[T]) -> Sequence[Sequence[T]]:
        """Return the images, or what stands for them, that each conversation of `chats` reads: by default all."""
        return [images] * len(self.chats(item, ""))

    def chats(self, item: Item, question: str) -> Sequence[Chat]:
        """Return all conversations of an item, with each answer that is scored; by default the only one."""
        return (self.chat(item, question),)

    def class_names_for(self, kind: str, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names that a model on a `kind` of backbone chooses from; none if it answers in its own words."""
        return class_names

    def prepare(self, training: Training) -> None:
        """Compute what the loss needs beside the model, before the first step, from the tensors at the start."""

    def loss(self, step: Step) -> Terms:
        """Return the default loss terms of this task, which are used for a method that does not define a loss."""
        return {"cross_entropy": step.cross_entropy}

    def right(self, step: Step) -> Tensor | None:
        """Return a mask `(b,)` of the items of a batch that a model answers correctly, or None without labels."""
        return step.right

    def class_weights(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return a loss weight for each class `(c,)`, with which all classes contribute equally to the loss."""
        counts = self.numbers(items, class_names).bincount(minlength=len(class_names)).clamp_min(1)
        return 1 / counts

    def fit_answers(
        self, baseline: Adapted, items: Sequence[Item], inference: Inference, model: Adapted | None = None
    ) -> None:
        """Fit on `items` what turns logits of `baseline`, and of a `model` still to be trained, into answers.

        An example is a logit bias. What is fitted of `model` must not depend on its tensors, so that a resumed run has
        the same answers.
        """

    # scoring

    def compares(self, method: Method) -> bool:
        """Return whether answers of `method` are scored by what the task is about, so that `recommend` compares it."""
        return self.learned_by(method)

    def answers(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Tensor:
        """Return the answers of `model` to the items `(n, k)` on the CPU; by default, the probabilities of classes."""
        return model.answers.probabilities(inference.all_logits(model, items).float())

    def constant(self, items: Sequence[Item], class_names: Sequence[str]) -> tuple[str, Tensor] | None:
        """Return the name and the value `(k,)` of an answer to any image, the baseline of what is learned from `items`.

        None if the baseline is the unadapted backbone.
        """
        return None

    def scores(self, items: Sequence[Item], answers: Tensor, class_names: Sequence[str]) -> Scores:
        """Return the scores of `answers` `(n, k)`."""
        from adapt.evaluation.scores import scored

        best = answers.max(-1)
        return scored(items, [([class_names[place] for place in best.indices.tolist()], best.values.tolist())])

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        """Return the scores of `model` on `items`."""
        from adapt.evaluation.scores import scored

        if self.one_class:  # batch by batch, as the logits of many items and classes are large
            return scored(items, inference.decisions(model, items))
        return self.scores(items, self.answers(model, items, inference), model.class_names)


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
