"""Backbones of images alone (DINOv2, timm's models, the image half of a CLIP), for which class names mean nothing.

Features of class names are replaced by mean features of training images, which a `CosineClassifier` holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder, ImageEncoder

MAP_BYTES = 2**26  # of a convolutional network's largest map, for the images that are encoded at once
SCALE = 1 / 0.07  # of cosines; the temperature of DINOv2's nearest neighbours, and of CLIP before its training


@dataclass(kw_only=True, eq=False, repr=False)
class VisionEncoder(ImageEncoder):
    """A backbone of images alone, such as DINOv2, whose classes are known by their training images.

    Create one with `adapt.load_backbone(spec)`, such as vision:mini-clip, or from a loaded model with
    `Backbone.from_timm` or `Backbone.from_transformers`.
    """

    kind = "vision encoder"
    instead = "use a method that reads no class names, such as linear_probe without method.words, or a dual encoder"

    tokenizer: Any = None

    def __post_init__(self) -> None:
        if not (self.towers or self.as_decoded or isinstance(self.encode_image, _InParts)):
            self.encode_image = _InParts(self.encode_image, self.model)

    @classmethod
    def of(cls, whole: DualEncoder, name: str | None = None) -> VisionEncoder:
        """Return the image half of a dual encoder. Its model stays whole, and its texts are not read."""
        return cls(
            model=whole.model,
            towers={part: tower for part, tower in whole.towers.items() if part == "vision"},
            preprocess=whole.preprocess,
            encode_image=whole.encode_image,
            name=name,
            eval_transform=whole.eval_transform,
        )

    @property
    def logit_scale(self) -> float:
        return SCALE

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Raise AdaptError if an image called `name`, of this width and height, is too large to be read."""

    def new_classifier(self, classes: int, trained: bool) -> CosineClassifier:
        """Return a classifier by cosines for a number of classes, whose vectors are zero until training sets them."""
        return CosineClassifier(torch.zeros(classes, self.embed_dim, device=self.device), trained)


class _InParts:
    """The forward of a network without blocks, whose maps may be large: of a few images at once without gradients."""

    def __init__(self, encode: Callable[[Tensor], Tensor], model: nn.Module) -> None:
        self._encode, self._model = encode, model
        self._largest: dict[torch.Size, int] = {}  # bytes of an image's largest map, by the image's shape

    def __call__(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(images) < 2:
            return self._encode(images)
        if (largest := self._largest.get(images.shape[1:])) is None:
            largest = self._largest[images.shape[1:]] = self._measured(images[:1])
        images = images.contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        return torch.cat([self._encode(part) for part in images.split(max(1, MAP_BYTES // largest))])

    def _measured(self, image: Tensor) -> int:
        found = [1]

        def note(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                found.append(output.nbytes)

        handles = [module.register_forward_hook(note) for module in self._model.modules()]
        try:
            self._encode(image)
        finally:
            for handle in handles:
                handle.remove()
        return max(found)


class CosineClassifier(nn.Module):
    """A vector for each class, `weight` `(n_classes, e)`, with which image features are compared by cosines.

    `weight` is a parameter if it is `trained`, and a buffer otherwise.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, trained: bool) -> None:
        super().__init__()
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self) -> Tensor:
        """Return the unit-length class vectors `(n_classes, e)`."""
        return F.normalize(self.weight, dim=-1)

    @torch.no_grad()
    def set(self, weight: Tensor) -> None:
        """Set the class vectors `(n_classes, e)`."""
        self.weight.copy_(weight)
