"""An image and random views of it as one stack, the same wherever it is read."""

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
    """A transform that gives `(1 + count, 3, h, w)`: the image by `plain`, then `count` draws of `random`.

    A draw's seed is made of the picture's pixels and the view's number.
    """

    def __init__(self, plain: Transform, random: Transform, count: int) -> None:
        self.plain, self.random, self.count = plain, random, count

    @property
    def turned(self) -> bool:
        """Whether pictures are turned upright before."""
        return turns(self.plain)

    def __call__(self, image: Image) -> Tensor:
        import torch

        views, content = [self.plain(image)], hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        for number in range(self.count):
            with seeded(seed_for(content, image.size, "view", number)):
                views.append(self.random(image))
        return torch.stack(views)
