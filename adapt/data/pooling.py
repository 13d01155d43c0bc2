"""Sums and means over the images of each bag, whose images stand one after another without padding."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of(counts: Tensor) -> Tensor:
    """Return the number of its bag for each image `(m,)`, from the counts of images `(b,)`."""
    return torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)


def bag_sum(values: Tensor, counts: Tensor) -> Tensor:
    """Return the sums `(b, ...)` over the images of each bag of `values` `(m, ...)`."""
    sums = values.new_zeros(counts.shape[0], *values.shape[1:])
    return sums.index_add(0, rows_of(counts), values)


def bag_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the means `(b, ...)` over the images of each bag of `values` `(m, ...)`."""
    return bag_sum(values, counts) / counts.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def bag_softmax(scores: Tensor, counts: Tensor) -> Tensor:
    """Return `scores` `(m,)` as weights `(m,)` that sum to 1 over the images of each bag."""
    rows = rows_of(counts)
    largest = scores.new_full(counts.shape, -torch.inf).scatter_reduce(0, rows, scores.detach(), "amax")
    weights = (scores - largest[rows]).exp()
    return weights / bag_sum(weights, counts)[rows]
