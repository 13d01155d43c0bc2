"""The base of tasks: the kind of label that items have, and how it is read, learned, answered and scored.

A task is a file in this package, or in another package with an entry point in the group `adapt.tasks`. Nothing outside
knows a task by its name: data, training, evaluation and commands use the task of the items at hand. This module does
not import torch, which takes seconds and is not needed to read data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.data.split import check_kind
from adapt.methods.base.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.backbones.base import Backbone
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Method
    from adapt.models.base import Adapted


class Task(Objective):
    """The base class of all tasks. By default, each item has one class, and the logits of a model predict the class."""

    backbones: ClassVar[frozenset[str]] = frozenset({"dual encoder"})
    """The kinds of backbones that can answer the task."""
    example: ClassVar[str] = ""
    """The bundled data on which the contract suite and `adapt.testing` run; "" for none."""
    comparable: ClassVar[str] = ""
    """The reason why `recommend` does not compare methods on this task; "" if it does."""

    def validates(self, model: Adapted) -> bool:
        """Return whether a model is scored on the validation items in addition to the test items."""
        return self.scored

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
        """Raise AdaptError if `model` cannot do this task or lacks an item's class, or if items are of two kinds."""
        check_kind(items, "the data")
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

    def class_names_for(self, kind: str, class_names: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names that a model on a `kind` of backbone chooses from; none if it answers in its own words."""
        return class_names

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
        from adapt.methods.base.traits import DrawsMaps, has_trait

        self.check_tested(model, items)
        if has_trait(model.method, DrawsMaps):
            from adapt.evaluation.maps import scored_with_maps

            return scored_with_maps(model, items, inference)
        if self.one_class:  # batch by batch, as the logits of many items and classes are large
            return scored(items, inference.decisions(model, items))
        return self.scores(items, self.answers(model, items, inference), model.class_names)
