"""The part of a task that training needs: which methods can learn it, the step of a batch, and the loss.

Models and evaluation know a task by this part; `adapt.tasks` adds how answers are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from adapt.data.item import TASKS, Item, LabelKind

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.methods.base.method import Method
    from adapt.methods.base.step import Step, Terms
    from adapt.methods.base.training import Training
    from adapt.models.base import Adapted


class Objective(LabelKind):
    """The part of a task that training needs. By default a step computes the cross-entropy of one class per item."""

    keeps_entities_together: ClassVar[bool] = False
    """Whether items of one entity follow each other in training, in the number that the method asks for."""
    has_summed_loss: ClassVar[bool] = True
    """Whether the loss of a batch is a mean over its items, or over what else `step.weight` counts, and compares none.

    A task with a `loss` or `step` of its own says so itself, or its batches are not divided by items among processes.
    """
    has_class_loss: ClassVar[bool] = False
    """Whether the loss is that of classes by the setting `train.objective`."""
    learns_from_features: ClassVar[bool] = True
    """Whether a step may take cached features instead of images."""

    _learned_as: ClassVar[frozenset[str] | None] = None
    """The tasks of which, or else of this one, a method must name one to learn it; None if it need name none."""

    def learned_by(self, method: Method | type[Method]) -> bool:
        """Return whether a method can learn this task; for a method class, whether some instance of the class can."""
        from adapt.methods.base.method import Method as Base
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

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        """Raise AdaptError if `method` cannot learn from the training `items`."""

    def step(self, model: Adapted, items: Sequence[Item], inputs: object) -> Step:
        """Return the `Step` of a batch, from which a method computes a loss; `inputs` are images or cached features."""
        return model.step(inputs).of(self, items)

    def prepare(self, training: Training) -> None:
        """Compute what the loss needs beside the model, before the first step, from the tensors at the start."""

    def loss(self, step: Step) -> Terms:
        """Return the default loss terms of this task, which are used for a method that does not define a loss."""
        return step.class_terms if self.has_class_loss else {"cross_entropy": step.cross_entropy}

    def right(self, step: Step) -> Tensor | None:
        """Return a mask `(b,)` of the items of a batch that a model answers correctly, or None without labels."""
        return step.right

    def class_weights(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return a loss weight for each class `(c,)`, with which all classes contribute equally to the loss."""
        counts = self.numbers(items, class_names).bincount(minlength=len(class_names)).clamp_min(1)
        return 1 / counts


def without_classes(method: Method) -> bool:
    """Return whether the method can learn a task without classes, in which case the method needs no class names."""
    return any(cls.label_type.task.learned_by(method) for cls in TASKS.classes() if not cls.classes_are)
