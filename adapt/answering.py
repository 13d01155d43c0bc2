"""A fusion encoder under a method: answers a question about an image, out of a list of answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adapt.adapted import Adapted
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method
from adapt.prediction import Prediction, batches_of, predictions
from adapt.tasks import classes

if TYPE_CHECKING:
    from adapt.backbones.fusion import FusionEncoder


class AnsweringModel(Adapted["FusionEncoder"]):
    """`model(images, questions)` gives logits over the answers. Its trained head belongs to the method."""

    def __init__(
        self, backbone: FusionEncoder, method: Method, answers: Sequence[str], *, checkpointing: bool = False
    ) -> None:
        super().__init__(backbone, method, answers, checkpointing=checkpointing)
        self._renew_head()

    def _renew_head(self) -> None:
        if not self.method.touches and not self.backbone.knows(self.class_names):
            raise AdaptError(
                f"{self.method.name} trains nothing, and {self.backbone.describe()} has no head for these answers: "
                "take a method that adapts a tower"
            )
        self.method.classifier = self.backbone.new_classifier(self.class_names)

    baseline = "own head"

    @property
    def has_baseline(self) -> bool:
        return self.backbone.knows(self.class_names)

    def settle(self, blocks: Sequence[str]) -> None:
        super().settle(blocks)
        self._renew_head()

    def forward(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """Images `(b, 3, h, w)` with a question each to logits `(b, answers)`."""
        check_texts(images, questions)
        with ExitStack() as stack:
            for name in sorted(self.method.touches) or [""]:
                stack.enter_context(self._edited(name, self._edits(name, Context())))
            features = self.backbone.encode(images, questions)
        head: Any = self.method.classifier
        return head(features.to(head[0].weight.dtype))

    def objective(self, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, questions, _ = inputs
        return classes.objective(self(images.to(self.backbone.device), questions), labels)

    def decide(self, inputs: Any) -> tuple[list[str], list[float]]:
        images, questions, _ = inputs
        return classes.decided(self(images.to(self.backbone.device), questions), self.class_names)

    @torch.inference_mode()
    def predict_stream(
        self, images: Iterable[Any] | Any, top_k: int = 5, batch_size: int = 64, *, question: str
    ) -> Iterator[Prediction]:
        """The answers to `question` about each image (PIL images or paths), one prediction at a time."""
        from adapt.data.images import open_image

        transform = self.backbone.transform(train=False)
        with evaluating(self):
            for batch in batches_of(images, batch_size):
                pixels = torch.stack([transform(open_image(image)) for image in batch]).to(self.backbone.device)
                yield from predictions(self(pixels, [question] * len(batch)), self.class_names, top_k)

    def predict(self, images: Iterable[Any] | Any, top_k: int = 5, *, question: str) -> list[Prediction]:
        """The answers to `question` about images, most probable first. Raises AdaptError for an unreadable file."""
        return list(self.predict_stream(images, top_k, question=question))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def check_texts(images: Tensor, texts: Sequence[str], kind: str = "question") -> None:
    """AdaptError unless there is one text of this kind, in a list, for each image `(b, 3, h, w)`."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
        raise AdaptError(f"images are {given}; expected (b, 3, h, w), one image for each {kind}")
    if isinstance(texts, str) or len(texts) != len(images):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {kind}s"
        raise AdaptError(f"{given} about {len(images)} images: give a list of one {kind} for each image")
