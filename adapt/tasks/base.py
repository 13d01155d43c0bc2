"""What a task is: the kind of label that items have, and how it is read, learned, answered and scored.

A task is a file in this package, or in a package of somebody else's with an entry point in the group `adapt.tasks`.
Nothing outside knows a task by its name: data, training, evaluation and commands ask the task of the items at hand.
This module does not import torch, which takes seconds: reading data needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.data.item import Item
    from adapt.data.split import Split
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method, Step, Terms
    from adapt.models.base import Adapted
    from adapt.models.wrap import Model
    from adapt.training.fitting import Fitting

SEPARATOR = "|"  # of the names of several classes, where they are written as one text


@dataclass(frozen=True)
class Label:
    """What is known of one item beside its files. A task derives its own, a small frozen dataclass."""

    task: ClassVar[Task]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the item's classes."""
        return ()

    @property
    def stratum(self) -> str:
        """What shots, folds and parts are drawn by."""
        return SEPARATOR.join(self.class_names)

    @property
    def unit(self) -> str:
        """The entity that the item is of; all items of one stay together."""
        return ""

    @property
    def files(self) -> tuple[str, ...]:
        """Files beside the item's own, such as a mask."""
        return ()

    @property
    def words(self) -> str:
        """How a person reads it."""
        return SEPARATOR.join(self.class_names)

    @property
    def columns(self) -> dict[str, str]:
        """What lists of items say beside the answer, by column."""
        return {}

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same with other names for its classes."""
        return self

    def identity(self, root: str) -> Any:
        """What fingerprints depend on beside the classes' numbers, as JSON has it; files are told below `root`."""
        return asdict(self)


@dataclass(frozen=True)
class NamedLabel(Label):
    """A label with the name of one class."""

    name: str

    @property
    def class_names(self) -> tuple[str, ...]:
        return (self.name,)

    def renamed(self, names: Mapping[str, str]) -> Self:
        return replace(self, name=names[self.name])

    def identity(self, root: str) -> Any:
        return super().identity(root) | {"name": None}  # a number stands for it, whatever the class is called


class Task:
    """The base of all tasks: by default items have classes, which logits tell apart."""

    name: ClassVar[str]
    title: ClassVar[str]
    """One line about it, for lists."""
    label_type: ClassVar[type[Label]]
    """Labels of the task."""
    backbones: ClassVar[frozenset[str]] = frozenset({"dual encoder"})
    """The kinds of backbones that answer it."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """The columns that a list of items must have for it; a name may end in `*`, for any number of columns."""
    may_have: ClassVar[frozenset[str]] = frozenset()
    """More columns that it reads."""
    images: ClassVar[tuple[str, ...]] = ("path",)
    """The columns of an item's images."""
    files: ClassVar[frozenset[str]] = frozenset()
    """The columns of files beside the images, such as a mask."""
    noun: ClassVar[str] = "images"
    """What is counted."""
    items_are: ClassVar[str] = "images"
    """What its items are called."""
    classes_are: ClassVar[str] = "classes"
    """What its classes are called; "" for a task without classes."""
    learns_unseen: ClassVar[bool] = False
    """Whether a class may be without a training image."""
    stays_whole: ClassVar[bool] = False
    """Whether all items of one image belong into one part of the data."""
    once_an_image: ClassVar[bool] = True
    """Whether an image is listed once: twice, with another label, is a mistake."""
    divisible: ClassVar[bool] = True
    """Whether a data set can be restricted to some of its classes."""
    calibrated: ClassVar[bool] = True
    """Whether a temperature makes probabilities of its classes honest."""
    example: ClassVar[str] = ""
    """Bundled data of the task, with which the contract suite and `adapt.testing` run; "" for none."""
    comparable: ClassVar[str] = ""
    """Why methods are not compared on it by `recommend`; "" where they are."""
    keeps_entities_together: ClassVar[bool] = False
    """Whether items of one entity follow each other in training, as many as the method asks for."""
    learns_from_features: ClassVar[bool] = True
    """Whether a step may be given features that were computed once, in place of images."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "label_type" in vars(cls):
            cls.label_type.task = cls()

    # reading

    def read(self, cells: Mapping[str, Any], where: str) -> Label:
        """The label that a row says, by column. AdaptError, beginning with `where`, for a value that makes none."""
        raise NotImplementedError

    def completed(self, labels: Sequence[Any]) -> Sequence[Label]:
        """The labels of a whole data set, once all are read, where one depends on the others."""
        return labels

    def class_names(self, labels: Iterable[Label]) -> tuple[str, ...]:
        """The names of the classes of a data set that does not list them: sorted."""
        return tuple(sorted({name for label in labels for name in label.class_names}))

    # a data set

    def check(self, split: Split) -> None:
        """AdaptError where labels do not go together."""

    def validates(self, model: Adapted) -> bool:
        """Whether validation items are scored beside the test's."""
        return True

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        """AdaptError where `method` cannot learn from these training items."""

    def check_answers(self, model: Adapted) -> None:
        """AdaptError where a model was trained to answer in another way than the task asks for."""
        if model.answers.several:
            raise AdaptError(
                f"this {model.method.name} learned to find several classes in an image, and the data has {self.title}: "
                "give a .csv with a column labels"
            )

    def check_tested(self, model: Adapted, items: Sequence[Item]) -> None:
        """AdaptError where a model cannot be scored on these items, before any is decoded."""

    def check_model(self, model: Adapted, items: Sequence[Item]) -> None:
        """AdaptError where a model answers another task than that of the items, or does not know their classes."""
        kind = model.backbone.family
        if kind not in self.backbones:
            raise AdaptError(
                f"the data are {self.items_are}, and {model.backbone.describe()} is a {kind}: take a "
                f"{' or a '.join(sorted(self.backbones))}, or data that a {kind} answers"
            )
        if self.classes_are and not model.class_names and kind == "dual encoder":
            raise AdaptError(
                f"the model tells no classes apart, and the data has some ({items[0].answer!r}): give it their names, "
                "as class_names or by --data-classes"
            )
        known = set(model.class_names)
        for item in items if known else ():
            if not known.issuperset(item.class_names):
                raise AdaptError(
                    f"{item.name} is of class {item.answer!r}, which the model does not know: wrap or load the model "
                    "with the data's own class names"
                )

    # learning

    def learned_by(self, method: Method | type[Method]) -> bool:
        """Whether a method can learn it; or those of a class, as far as the class tells."""
        from adapt.methods.base.traits import LearnedTokens, LearnsShares, has_trait, owns_prompts

        if self.name in method.tasks:
            return True
        if self.classes_are:
            return method.learns_any_step or has_trait(method, LearnsShares)
        owns = has_trait(method, LearnedTokens) if isinstance(method, type) else owns_prompts(method)
        return method.learns_any_step and _edits(method) and not owns

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """The number of each item's class `(n,)`, by the order of the names."""
        import torch

        place = {name: number for number, name in enumerate(class_names)}
        return torch.tensor([place[item.label.class_names[0]] for item in items], dtype=torch.long)

    def shares(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """How much of each item belongs to each class `(n, c)`; rows add up to 1."""
        import torch
        import torch.nn.functional as F

        return F.one_hot(self.numbers(items, class_names), len(class_names)).to(torch.float64)

    def values(self, items: Sequence[Item]) -> Tensor | None:
        """A number that each item has beside its class `(n,)`, such as a grade; None where the task has none."""
        return None

    def labels(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """What a step holds of its items, `(b,)` or `(b, c)`: by default the numbers of their classes."""
        return self.numbers(items, class_names)

    def step(self, model: Adapted, items: Sequence[Item], inputs: Any) -> Step:
        """A batch of these items as a method sees it; `inputs` are their images, or what was computed of them."""
        return model.step(inputs).of(self, items)

    def loss(self, step: Any) -> Terms:
        """What training makes smaller where the method has no loss of its own."""
        return {"cross_entropy": step.cross_entropy}

    def right(self, step: Any) -> Tensor:
        """Which answers to a batch `(b,)` are right."""
        right: Tensor = step.right
        return right

    def class_weights(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """How much an image of each class counts `(c,)`, so that all classes count the same."""
        counts = self.numbers(items, class_names).bincount(minlength=len(class_names)).clamp_min(1)
        return 1 / counts

    def fit_answers(self, training: Fitting, baseline: Model) -> None:
        """Sets what the answers of a model and of its baseline need beside logits, by the training items."""

    def fit_baseline(self, baseline: Adapted, items: Sequence[Item], inference: Inference) -> None:
        """Sets the same for a baseline that nothing is compared with, by these items."""

    # scoring

    def score(self, model: Adapted, items: Sequence[Item], inference: Inference) -> Scores:
        """How well `model` answers these items."""
        raise NotImplementedError


def _edits(method: Method | type[Method]) -> bool:
    """Whether it changes a tower: what depends on class features alone learns nothing without classes."""
    from adapt.methods.base import Method as Base

    return method.edits is not Base.edits if isinstance(method, type) else bool(method.touches)


def filled(cells: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column. AdaptError, beginning with `where`, where it is empty."""
    if not cells[column]:
        raise AdaptError(f"{where}: the {column} is empty.")
    return str(cells[column])


def number(cell: Any, where: str, column: str) -> float:
    """The number in a cell. AdaptError, beginning with `where`, for what is none."""
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise AdaptError(f"{where}: the {column} is {cell!r}; expected a number.")
    return value
