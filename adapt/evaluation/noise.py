"""How far an accuracy, or a difference of two, may be off by the choice of the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_error(values: Tensor, groups: Sequence[str]) -> float:
    """That of the mean of `values` `(n,)`, of which those of one group are not independent of one another.

    The cluster-robust one, with the factor for few groups; 0 for a single group, of which nothing can be said.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        return 0.0
    of = torch.tensor([numbers[name] for name in groups])
    apart = (values.double() - values.double().mean()).clone()
    sums = torch.zeros(len(numbers), dtype=torch.double).index_add(0, of, apart)
    factor = len(numbers) / (len(numbers) - 1)
    return float((factor * sums.square().sum()).sqrt() / len(values))
