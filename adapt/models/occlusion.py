"""What an answer rests on: how much less sure it is where a part of the image is covered.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014 (section 4.2). Here the cover
has the image's mean colour instead of grey, and log-odds are compared, as a probability near 1 hardly moves. Neither
gradients nor attention are read, so that any model that classifies pixels will do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 8  # of an image, across and down; the cover is two by two of them, and moves by one
_AT_ONCE = 27  # covered images in a pass


def rests_on(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, several: bool = False) -> Tensor:
    """Return how much the log-odds of classes `(b,)` fall where images `(b, 3, h, w)` are covered, `(b, h, w)` on CPU.

    `model` gives logits `(b, n_classes)`, which are log-odds themselves if an image can have `several` classes. A pixel
    has the mean over all places of the cover that contain it.
    """

    def odds(images: Tensor, label: int) -> Tensor:
        logits = model(images)
        if several:
            return logits[:, label]
        others = F.one_hot(torch.tensor(label), logits.shape[1]).bool().to(logits.device)
        return logits[:, label] - logits.masked_fill(others, -torch.inf).logsumexp(-1)

    covers = _covers(*images.shape[-2:]).to(images.device)
    falls = []
    for image, label in zip(images, labels.tolist(), strict=True):
        colour, before = image.mean((-2, -1), keepdim=True), odds(image[None], label)
        after = [odds(torch.where(some[:, None], colour, image), label) for some in covers.split(_AT_ONCE)]
        fall = (before - torch.cat(after)).float()
        falls.append((fall[:, None, None] * covers).sum(0) / covers.sum(0))
    return torch.stack(falls).cpu()


def _covers(height: int, width: int) -> Tensor:
    """Return the places of the cover as masks `(n, h, w)`; at the edges, half of it is in the image."""
    places = torch.arange(CELLS + 1)[:, None]
    rows, columns = (torch.arange(size) * CELLS // size for size in (height, width))
    rows, columns = ((cells == places) | (cells == places - 1) for cells in (rows, columns))
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
