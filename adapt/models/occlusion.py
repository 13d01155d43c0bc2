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
PLACES = (CELLS + 1) ** 2 + 1  # of the cover, the first of which hides nothing
_AT_ONCE = 41  # covered images in a pass


def rests_on(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, several: bool = False) -> Tensor:
    """Return the maps `(b, h, w)` of `Occlusion` for the classes `(b,)` of images `(b, 3, h, w)`, on the CPU."""
    maps = []
    for image, label in zip(images, labels.tolist(), strict=True):
        occlusion = Occlusion(model, image, label, several)
        odds = [occlusion.log_odds(some) for some in occlusion.covers.split(_AT_ONCE)]
        maps.append(occlusion.falls(torch.cat(odds)))
    return torch.stack(maps).cpu()


class Occlusion:
    """An image `(3, h, w)` and a class, whose log-odds are computed in parts, for some places of the cover at a time.

    `model` gives logits `(b, n_classes)`, which are log-odds themselves if an image can have `several` classes.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], image: Tensor, label: int, several: bool = False) -> None:
        self._model, self._image, self._label, self._several = model, image, label, several
        places = torch.arange(CELLS + 1)[:, None]
        of_side = (torch.arange(size) * CELLS // size for size in image.shape[-2:])
        rows, columns = ((cells == places) | (cells == places - 1) for cells in of_side)
        covers = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)
        self.covers = torch.cat([torch.zeros_like(covers[:1]), covers]).to(image.device)
        """Masks `(PLACES, h, w)`, the first of which hides nothing; at the edges, half of the cover is in the image."""

    def log_odds(self, covers: Tensor) -> Tensor:
        """Return the log-odds `(n,)` of the class where each of some `covers` `(n, h, w)` hides a part of the image."""
        colour = self._image.mean((-2, -1), keepdim=True)
        logits = self._model(torch.where(covers[:, None], colour, self._image)).float()
        if self._several:
            return logits[:, self._label]
        own = F.one_hot(torch.tensor(self._label), logits.shape[1]).bool().to(logits.device)
        return logits[:, self._label] - logits.masked_fill(own, -torch.inf).logsumexp(-1)

    def falls(self, odds: Tensor) -> Tensor:
        """Return how much the log-odds `(PLACES,)` fall, for each pixel `(h, w)`: the mean over covers that hide it."""
        covers = self.covers[1:]
        return ((odds[0] - odds[1:]).to(covers.device)[:, None, None] * covers).sum(0) / covers.sum(0)
