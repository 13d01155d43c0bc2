"""The kernel of cosines that look-up tables of training images and kernel regression share."""

from __future__ import annotations

from torch import Tensor


def similarities(features: Tensor, keys: Tensor, beta: float) -> Tensor:
    """Return exp(-beta (1 - cosine)) `(b, n)` for unit-length features `(b, e)` and keys `(n, e)`."""
    return (beta * (features @ keys.T - 1)).exp()


def table_logits(features: Tensor, keys: Tensor, labels: Tensor, classes: int, beta: float) -> Tensor:
    """Return the similarities of features `(b, e)` to labelled keys `(n, e)`, summed by class, `(b, n_classes)`."""
    similar = similarities(features, keys, beta)
    return similar.new_zeros(similar.shape[0], classes).index_add(1, labels, similar)
