"""Images of one part of a data set that are in another too, resized, recompressed or mirrored.

Features say which images could be the same, and small pictures of those which are: features alone take two drawings of
one object for the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.data.split import Split

NEAREST = 3  # training images that are looked at for each other one
SIDE = 12  # of the pictures that are compared
ALIKE = 0.98  # their correlation from which on two images count as one
KEPT = 4096  # small pictures in memory


def near_duplicates(split: Split, features: dict[str, Tensor]) -> list[dict[str, Any]]:
    """A row for each test and validation image that is nearly a training image, the most alike first.

    `features` are unit-length ones `(n, e)` of the parts by name.
    """
    thumbnail = lru_cache(KEPT)(_thumbnail)
    rows = []
    for part in ("val", "test"):
        items: Sequence[Item] = getattr(split, part)
        for item, feature in zip(items, features.get(part, ())):
            near = (features["train"] @ feature).topk(min(NEAREST, len(split.train))).indices.tolist()
            own = thumbnail(item.path, item.turned)
            others = [(place, split.train[place]) for place in near]
            alike = [(_correlation(own, thumbnail(other.path, other.turned)), place) for place, other in others]
            correlation, place = max(alike)
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
    return sorted(rows, key=lambda row: -row["correlation"])


def _thumbnail(path: str, turned: bool) -> Tensor:
    """A picture of a few pixels `(3, s, s)` without its mean, of length one."""
    small = open_image(path, turned=turned).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = pil_to_tensor(small).float()
    pixels = pixels - pixels.mean()
    return pixels / pixels.norm().clamp_min(torch.finfo(pixels.dtype).tiny)


def _correlation(one: Tensor, other: Tensor) -> float:
    """Of two small pictures, or of one and the other's mirror image."""
    return max(float((one * other).sum()), float((one * other.flip(-1)).sum()))
