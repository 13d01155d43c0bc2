"""The standard error that the choice of images gives to an accuracy, or to the difference of two accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_error(values: Tensor, groups: Sequence[str]) -> float:
    """Return the standard error of the mean of `values` `(n,)`, where values of one group are not independent.

    It is cluster-robust, with the correction for few groups; 0 for a single group, for which it is unknown.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return 0.0
    group = torch.tensor([numbers[name] for name in groups])
    deviations = values.double() - values.double().mean()
    sums = torch.zeros(len(numbers), dtype=torch.double).index_add(0, group, deviations)
    factor = len(numbers) / (len(numbers) - 1)
    return float((factor * sums.square().sum()).sqrt() / len(values))
