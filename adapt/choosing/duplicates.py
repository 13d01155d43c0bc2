"""Near duplicates between the parts of a data set (train, val, test): resized, recompressed or mirrored images.

Features select possible duplicates, and thumbnails decide: by features alone, two drawings of one object would count as
the same image. What counts as the same depends on how alike different training images are: photographs that a machine
takes of its pieces are all alike, and differ by the crack that matters.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import median

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.data.split import Split

NEAREST = 3  # training images that each other image is compared with
SIDE = 12  # pixels of a thumbnail
SAME = 1e-3  # the distance up to which training images are copies themselves
UNLIKE = 0.02  # two images count as one if their thumbnails' correlation is nearer to 1 than this
SHARE = 0.1  # or than this share of the usual distance of a training image to the one most like it
SAMPLE = 100  # training images from which the usual distance is taken
KEPT = 4096  # thumbnails in memory

ListedImage = dict[str, str | float]  # a row of a list: the image's path and class, and why it is listed


def near_duplicates(split: Split, features: dict[str, Tensor]) -> list[ListedImage]:
    """Return a row for each test or validation image that looks like a training image, the most similar first.

    `features` contains unit-length features `(n, e)` of train, val and test.
    """
    thumbnail = lru_cache(KEPT)(_thumbnail)
    train = features["train"]

    def most_alike(item: Item, feature: Tensor, but: int = -1) -> tuple[float, int]:
        """Return the highest correlation with a training image other than `but`, and the index of that image."""
        near = (train @ feature).topk(min(NEAREST + 1, len(train))).indices.tolist()
        others = [place for place in near if place != but][:NEAREST]
        own = thumbnail(item.path, item.turned)
        found = [(_correlation(own, thumbnail(split.train[place].path, item.turned)), place) for place in others]
        return max(found, default=(0.0, 0))

    if not (split.val or split.test):
        return []
    step = max(1, len(train) // SAMPLE)
    usual = [1 - most_alike(split.train[place], train[place], place)[0] for place in range(0, len(train), step)]
    least = 1 - min(UNLIKE, SHARE * median([each for each in usual if each > SAME] or [1.0]))
    rows: list[ListedImage] = []
    for part, items in (("val", split.val), ("test", split.test)):
        for item, feature in zip(items, features.get(part, ())):
            correlation, place = most_alike(item, feature)
            if correlation > least:
                other = split.train[place]
                rows.append(
                    {
                        "path": item.path,
                        "part": part,
                        "class": item.answer,
                        "train_path": other.path,
                        "train_class": other.answer,
                        "correlation": round(correlation, 4),
                    }
                )
    return sorted(rows, key=lambda row: -float(row["correlation"]))


def _thumbnail(path: str, turned: bool) -> Tensor:
    """Return a thumbnail of an image as a tensor `(3, s, s)` with mean 0 and norm 1."""
    small = open_image(path, turned=turned).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = pil_to_tensor(small).float()
    pixels = pixels - pixels.mean()
    return pixels / pixels.norm().clamp_min(torch.finfo(pixels.dtype).tiny)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Return the correlation of two thumbnails, or of one thumbnail and the mirrored second, whichever is larger."""
    return max(float((one * other).sum()), float((one * other.flip(-1)).sum()))
