"""Classification: scaled cosines, cross-entropy, decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from adapt.prediction import finite


def logits(image_features: Tensor, class_features: Tensor, scale: float, bias: float = 0.0) -> Tensor:
    """`scale * cosine + bias` of unit-length features `(b, e)` and `(n, e)` or, by image, `(b, n, e)`: `(b, n)`."""
    class_features = class_features.to(image_features.dtype)
    if class_features.ndim == 3:
        return scale * (class_features @ image_features[..., None])[..., 0] + bias
    return scale * image_features @ class_features.T + bias


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits `(b, n)` and labels `(b,)`."""
    return F.cross_entropy(logits, labels)


def distance(features: Tensor, others: Tensor) -> Tensor:
    """The mean of one minus the cosine of unit-length features `(b, e)` and `(b, e)`."""
    return 1 - (features.float() * others.float()).sum(-1).mean()


def objective(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of logits `(b, n)`, and which of them are right `(b,)`."""
    labels = labels.to(logits.device)
    return loss(logits.float(), labels), logits.argmax(-1) == labels


def decided(logits: Tensor, class_names: Sequence[str]) -> tuple[list[str], list[float]]:
    """The most probable class of each row of `(b, n)`, and its probability."""
    best = finite(logits).float().softmax(-1).max(-1)
    return [class_names[label] for label in best.indices.tolist()], best.values.tolist()
