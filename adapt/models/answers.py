"""What becomes of a method's logits before they are an answer: a share of the frozen model's, a temperature, a bias."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from adapt.errors import AdaptError


@dataclass(frozen=True)
class Answers:
    """How a model answers: `blend` of the method's logits and the rest of zero-shot ones, over `temperature`.

    For class weights on frozen features a blend of logits is one of weights (Wortsman et al., Robust Fine-tuning of
    Zero-shot Models, CVPR 2022: WiSE-FT); where a method edits a tower it is our reading of it, and takes a second pass
    of the frozen tower. Both are at the method's scale. The temperature changes how sure answers are, and none of them
    (Guo et al., ICML 2017).

    Raises AdaptError for a blend outside [0, 1], a temperature that is not positive, or a bias that is not finite.
    """

    blend: float = 1.0
    template: tuple[str, ...] = ()
    """Of the zero-shot classifier."""
    temperature: float = 1.0
    logit_bias: float | None = None
    """What is added to the logits where an image may have several classes, or none: the sigmoid of each is its class's
    probability then. None where an image has one class, by the softmax of all."""

    def __post_init__(self) -> None:
        if not 0 <= self.blend <= 1:
            raise AdaptError(f"blend is {self.blend}; expected the share of the adapted model, from 0 to 1")
        if not 0 < self.temperature < float("inf"):
            raise AdaptError(f"temperature is {self.temperature}; expected a positive number")
        if self.logit_bias is not None and not isfinite(self.logit_bias):
            raise AdaptError(f"logit_bias is {self.logit_bias}; expected a number")

    @property
    def several(self) -> bool:
        """Whether an image may have several classes, or none."""
        return self.logit_bias is not None

    def probabilities(self, logits: Tensor) -> Tensor:
        """What logits `(b, n)` of this kind make each class."""
        return logits.sigmoid() if self.several else logits.softmax(-1)

    def of(self, step: Any) -> Tensor:
        """The logits `(b, n)` with which a model answers a batch."""
        logits: Tensor = step.model.method.infer(step)
        if self.blend < 1:
            classes = step.frozen_class_features(self.template)
            logits = self.blend * logits + (1 - self.blend) * step.cosine_logits(classes, step.frozen_features)
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits if self.temperature == 1 else logits / self.temperature


PLAIN = Answers()
