"""Settings that turn a method's logits into answers: a blend with zero-shot logits, a temperature, and a bias."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

from torch import Tensor

from adapt.common.errors import AdaptError, nearest
from adapt.data.bags import BagPooling


@dataclass(frozen=True)
class Answers:
    """Settings that turn logits into answers: a `blend` with zero-shot logits, a `temperature`, and a `logit_bias`.

    For class weights on frozen features, a blend of logits equals a blend of weights (Wortsman et al., Robust
    Fine-tuning of Zero-shot Models, CVPR 2022: WiSE-FT). For a method that edits a tower, the blend is our reading of
    WiSE-FT, and needs a second pass through the frozen tower. Zero-shot logits have the method's logit scale. The
    temperature calibrates probabilities without changing the predicted class (Guo et al., ICML 2017).

    Raises AdaptError for a blend outside [0, 1], a temperature that is not positive, or a bias that is not finite.
    """

    blend: float = 1.0
    template: tuple[str, ...] = ()
    """The templates of the zero-shot classifier."""
    temperature: float = 1.0
    logit_bias: float | None = None
    """The bias of the logits in multi-label classification, where the sigmoid of each logit is the probability of its
    class. None in single-label classification, by softmax."""

    pooling: BagPooling = "features"
    """What is averaged over the images of a bag, an item of several images: their features, or their logits."""

    def __post_init__(self) -> None:
        if not 0 <= self.blend <= 1:
            raise AdaptError(f"blend is {self.blend}; expected the weight of the adapted model's logits, from 0 to 1")
        if self.pooling not in get_args(BagPooling):
            raise AdaptError(f"pooling is {self.pooling!r}; {nearest(self.pooling, get_args(BagPooling))}")
        if not 0 < self.temperature < float("inf"):
            raise AdaptError(f"temperature is {self.temperature}; expected a positive number")
        if self.logit_bias is not None and not isfinite(self.logit_bias):
            raise AdaptError(f"logit_bias is {self.logit_bias}; expected a finite number")

    @property
    def several(self) -> bool:
        """Whether an image can have any number of classes (multi-label classification)."""
        return self.logit_bias is not None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the class probabilities `(b, n)` for logits `(b, n)`."""
        return logits.sigmoid() if self.several else logits.softmax(-1)

    def of(self, step: Any) -> Tensor:
        """Return the logits `(b, n)` of a batch after the zero-shot blend, the logit bias and the temperature."""
        return self.adjusted(step.model.method.infer(step), step)

    def adjusted(self, logits: Tensor, step: Any) -> Tensor:
        """Return the `logits` `(b, n)` that a method inferred for a batch after blend, logit bias and temperature."""
        if self.blend < 1:
            classes = step.frozen_class_features(self.template)
            logits = self.blend * logits + (1 - self.blend) * step.cosine_logits(classes, step.frozen_features)
        logits = logits if self.logit_bias is None else logits + self.logit_bias
        return logits if self.temperature == 1 else logits / self.temperature


PLAIN = Answers()
