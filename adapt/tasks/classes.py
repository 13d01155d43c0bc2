"""Classification by names: scaled cosines, cross-entropy, accuracy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def logits(image_features: Tensor, class_features: Tensor, scale: float, bias: float = 0.0) -> Tensor:
    """`scale * cosine + bias` of unit-length features `(b, e)` and `(n, e)` or, by image, `(b, n, e)`: `(b, n)`."""
    class_features = class_features.to(image_features.dtype)
    if class_features.ndim == 3:
        return scale * (class_features @ image_features[..., None])[..., 0] + bias
    return scale * image_features @ class_features.T + bias


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits `(b, n)` and labels `(b,)`."""
    return F.cross_entropy(logits, labels)


def correct(logits: Tensor, labels: Tensor) -> int:
    """How many of a batch are right."""
    return int((logits.argmax(-1) == labels).sum())
