"""Near duplicates between the parts of a data set (train, val, test): resized, recompressed or mirrored images.

Features select possible duplicates, and thumbnails decide: by features alone, two drawings of one object would count as
the same image.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from adapt.data.decoding.images import open_image
from adapt.data.split import Split

NEAREST = 3  # training images that each other image is compared with
SIDE = 12  # pixels of a thumbnail
ALIKE = 0.98  # correlation above which two images count as one
KEPT = 4096  # thumbnails in memory

ListedImage = dict[str, str | float]  # a row of a list: the image's path and class, and why it is listed


def near_duplicates(split: Split, features: dict[str, Tensor]) -> list[ListedImage]:
    """Return a row for each test or validation image that almost duplicates a training image, the most similar first.

    `features` contains unit-length features `(n, e)` of train, val and test.
    """
    thumbnail = lru_cache(KEPT)(_thumbnail)
    rows: list[ListedImage] = []
    for part, items in (("val", split.val), ("test", split.test)):
        for item, feature in zip(items, features.get(part, ())):
            near = (features["train"] @ feature).topk(min(NEAREST, len(split.train))).indices.tolist()
            own = thumbnail(item.path, item.turned)
            others = [(place, thumbnail(split.train[place].path, split.train[place].turned)) for place in near]
            correlation, place = max((_correlation(own, other), place) for place, other in others)
            if correlation > ALIKE:
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
