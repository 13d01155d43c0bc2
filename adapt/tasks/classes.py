"""Decisions between classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adapt.prediction import finite


def decided(logits: Tensor, class_names: Sequence[str]) -> tuple[list[str], list[float]]:
    """The most probable class of each row of `(b, n)`, and its probability."""
    best = finite(logits).float().softmax(-1).max(-1)
    return [class_names[label] for label in best.indices.tolist()], best.values.tolist()
