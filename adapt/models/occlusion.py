"""What an answer rests on: how much less sure it is where a part of the image is covered.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014 (section 4.2). Here the cover
has the image's mean colour instead of grey, and log-odds are compared, as a probability near 1 hardly moves. Neither
gradients nor attention are read, so that any model that classifies pixels will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep

if TYPE_CHECKING:
    from adapt.models.image_model import ImageModel

CELLS = 8  # of an image, across and down; the cover is two by two of them, and moves by one
_AT_ONCE = 27  # covered images in a pass


def check_covers(model: ImageModel) -> None:
    """Raise AdaptError if the model does not answer from pixels `(b, 3, h, w)` alone."""
    if model.backbone.as_decoded or model.method.views:
        what = "reads views of an image" if model.method.views else "prepares images by itself"
        of = model.method.name if model.method.views else model.backbone.describe()
        raise AdaptError(f"{of} {what}, of which no part can be covered: leave explain or maps out")


def rests_on(model: ImageModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return how much the log-odds of classes `(b,)` fall where images `(b, 3, h, w)` are covered, `(b, h, w)` on CPU.

    A pixel has the mean over all places of the cover that contain it.
    """
    model, covers = model.without_memory(), _covers(*images.shape[-2:]).to(images.device)
    falls = []
    for image, label in zip(images, labels.tolist(), strict=True):
        colour, before = image.mean((-2, -1), keepdim=True), _odds(model, image[None], label)
        after = [_odds(model, torch.where(some[:, None], colour, image), label) for some in covers.split(_AT_ONCE)]
        fall = (before - torch.cat(after)).float()
        falls.append((fall[:, None, None] * covers).sum(0) / covers.sum(0))
    return torch.stack(falls).cpu()


def _covers(height: int, width: int) -> Tensor:
    """Return the places of the cover as masks `(n, h, w)`; at the edges, half of it is in the image."""
    places = torch.arange(CELLS + 1)[:, None]
    rows, columns = (torch.arange(size) * CELLS // size for size in (height, width))
    rows, columns = ((cells == places) | (cells == places - 1) for cells in (rows, columns))
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def _odds(model: ImageModel, images: Tensor, label: int) -> Tensor:
    """Return the log-odds `(b,)` of a class for images."""
    logits = model.answers.of(ImageStep(model, images))
    if model.answers.several:
        return logits[:, label]
    others = F.one_hot(torch.tensor(label), logits.shape[1]).bool().to(logits.device)
    return logits[:, label] - logits.masked_fill(others, -torch.inf).logsumexp(-1)
