"""The standard error that the choice of images gives to an accuracy, or to the difference of two accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_error(values: Tensor, groups: Sequence[str]) -> float:
    """Return the cluster-robust standard error of the mean of `values` `(n,)`; each group in `groups` is a cluster.

    The correction for few groups is included. Returns 0 for a single group, because the error is then unknown.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return 0.0
    group = torch.tensor([numbers[name] for name in groups])
    deviations = values.double() - values.double().mean()
    sums = torch.zeros(len(numbers), dtype=torch.double).index_add(0, group, deviations)
    factor = len(numbers) / (len(numbers) - 1)
    return float((factor * sums.square().sum()).sqrt() / len(values))
