"""A fusion encoder with a method, which answers questions about images from a list of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapt.methods.base import Context, Step
from adapt.models.base import Adapted, in_one_mode
from adapt.models.building import add_head
from adapt.models.prediction import Prediction, Query, check_asked, predictions

if TYPE_CHECKING:
    from adapt.backbones.fusion import FusionEncoder  # noqa: F401 (named in the class statement)


class QuestionStep(Step):
    """A batch of images with a question for each, to answer from a list of answers."""

    @property
    def weight(self) -> float:
        """The number of questions."""
        return float(len(self.items))


class AnsweringModel(Adapted["FusionEncoder"]):
    """A model for visual question answering; `model(images, questions)` returns logits over a list of answers.

    The trained classification head belongs to the method.
    """

    baseline = "own head"

    @property
    def has_baseline(self) -> bool:
        return self.backbone.knows(self.class_names)

    def start_anew(self) -> None:
        super().start_anew()
        add_head(self.backbone, self.method, self.class_names)

    @in_one_mode
    def forward(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """Return logits `(b, n_answers)` for images `(b, 3, h, w)` and one question for each image."""
        check_asked(images, questions)
        return self.answers.of(self.step((images, questions)))

    def step(self, inputs: object, labels: Tensor | None = None) -> QuestionStep:
        return QuestionStep(self, inputs, labels)

    def own_logits(self, step: Step) -> Tensor:
        """Return the trained head's logits `(b, n_answers)` for a batch of images with questions."""
        images, questions, *_ = step.inputs
        edits = {name: self._edits(name, Context()) for name in sorted(self.method.touches)}
        images = images.to(self.backbone.device)
        features = self._through(edits, lambda: self.backbone.encode(images, questions))
        head: Any = self.method.classifier
        logits: Tensor = head(features.to(head[0].weight.dtype))
        return logits

    def _predictions(self, pixels: Tensor, query: Query) -> Iterator[Prediction]:
        return predictions(self(pixels, [query.question or ""] * len(pixels)), self.class_names, query)
