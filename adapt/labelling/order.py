"""The order in which unlabelled images are worth a label: those that many other, uncertain images resemble.

Our reading: facility location (Wei et al., Submodularity in Data Subset Selection and Active Learning, ICML 2015), with
the similarity exp(s c) of two images whose features have the cosine c, and a weight for each image that is to be
represented. Uncertainty alone, which is what most tools order by, is no better than chance with a few labels a class
(`python -m benchmarks labelling`).
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARPNESS = 2.0  # of the similarity, over the standard deviation of the cosines
CERTAIN = 0.75  # how much an image counts whose class is certain; one that is undecided counts as 1


def most_useful(features: Tensor, labelled: Tensor, probabilities: Tensor, count: int) -> list[int]:
    """Return the places of up to `count` images, the most useful to label first.

    `features` `(n, e)` and `labelled` `(m, e)` are the unit-length features of unlabelled and labelled images, and
    `probabilities` `(n, c)` are the classes' for each unlabelled image. Each image in turn is the one that represents
    the others best, beside the labelled images and those before it.
    """
    weights = uncertainty(probabilities)
    cosines = features @ features.T
    sharpness = SHARPNESS / cosines.std().clamp_min(1e-6) if len(features) > 1 else torch.tensor(SHARPNESS)
    similar = (sharpness * (cosines - 1)).exp()
    represented = torch.zeros(len(features))
    if len(labelled):
        represented = (sharpness * ((features @ labelled.T).max(-1).values - 1)).exp()
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        gains = (similar - represented).clamp_min(0) @ weights
        gains[chosen] = -1
        chosen.append(int(gains.argmax()))
        represented = torch.maximum(represented, similar[chosen[-1]])
    return chosen


def uncertainty(probabilities: Tensor) -> Tensor:
    """Return the weight `(n,)` of each image, from `CERTAIN` to 1 if the two likeliest classes are equally likely."""
    if probabilities.shape[-1] < 2:
        return torch.ones(len(probabilities))
    first, second = probabilities.topk(2, -1).values.T
    return 1 - (1 - CERTAIN) * (first - second)
