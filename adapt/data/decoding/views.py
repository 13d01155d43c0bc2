"""An image and random augmentations (views) of it as one stack, the same wherever the image is read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from adapt.data.decoding.draws import seed_for, seeded
from adapt.data.decoding.orientation import turns

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from adapt.backbones.preprocess import Transform


class Views:
    """A transform of an image to `(1 + count, 3, h, w)`: the output of `plain`, then `count` outputs of `random`.

    The random seed of each augmentation by `random` depends only on the image's pixels and the augmentation's number.
    """

    def __init__(self, plain: Transform, random: Transform, count: int) -> None:
        self.plain, self.random, self.count = plain, random, count

    @property
    def turned(self) -> bool:
        """Whether images must be turned upright by their EXIF orientation before this transform."""
        return turns(self.plain)

    def __call__(self, image: Image) -> Tensor:
        import torch

        views, content = [self.plain(image)], hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        for number in range(self.count):
            with seeded(seed_for(content, image.size, "view", number)):
                views.append(self.random(image))
        return torch.stack(views)
