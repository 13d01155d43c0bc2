"""Two encoders of images as one backbone, whose feature of an image is both features side by side.

Each part has unit length, so that a cosine is the mean of the parts' cosines. A dual encoder in front gives the class
names' features, with zeros in the second part: zero-shot answers are its own. The second encoder reads the pixels of
the first, in its own size and normalisation, as published (CaFo): one preparation and one pass each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder, ImageEncoder
from adapt.backbones.preprocess import Repixelled
from adapt.backbones.vision_encoder import VisionEncoder


class BothEncoders:
    """The forward passes of two encoders of images, and the widths of their features."""

    def __init__(self, first: ImageEncoder, second: ImageEncoder) -> None:
        self.first, self.second = first, second
        self.widths = first.embed_dim, second.embed_dim
        self._pixels = Repixelled(first.preprocess, second.preprocess)

    def features(self, images: Tensor) -> Tensor:
        """Return both features of images `(b, 3, h, w)` side by side, each of unit length, `(b, e1 + e2)`."""
        others = self._pixels(images).to(self.second.dtype)
        features = self.first.encode_image(images), self.second.encode_image(others)
        return torch.cat([F.normalize(each.float(), dim=-1) for each in features], dim=-1)

    def texts(self, ids: Tensor) -> Tensor:
        """Return the first encoder's text features, with zeros in place of the second's, `(n, e1 + e2)`."""
        assert isinstance(self.first, DualEncoder)
        return F.pad(self.first.encode_text(ids).float(), (0, self.widths[1]))


class _Joined(ImageEncoder):
    """Two encoders of images as one backbone, which records how the images of both are prepared.

    Its towers cannot be edited.
    """

    def __init__(self, both: BothEncoders, name: str | None = None, **more: Any) -> None:
        self.both, first = both, both.first
        super().__init__(
            model=nn.ModuleDict({"first": first.model, "second": both.second.model}),
            towers={},
            preprocess=first.preprocess,
            name=name,
            eval_transform=first.eval_transform,
            encode_image=both.features,
            **more,
        )

    def reading(self) -> dict[str, object]:
        return super().reading() | {"second": self.both.second.reading()}

    def content(self) -> str:
        second = self.both.second.preprocess
        return f"{super().content()} {second.size} {second.mean} {second.std}"


class JoinedDualEncoder(_Joined, DualEncoder):
    """A dual encoder and a second encoder of images as one backbone."""

    def __init__(self, both: BothEncoders, name: str | None = None) -> None:
        super().__init__(both, name, encode_text=both.texts, tokenizer=both.first.tokenizer)

    @property
    def logit_scale(self) -> float:
        return self.both.first.logit_scale * 2**0.5  # a joined feature is longer by this than its first part

    @property
    def logit_bias(self) -> float:
        return self.both.first.logit_bias

    @property
    def _parameter(self) -> Tensor:
        return self.both.first._parameter


class JoinedVisionEncoder(_Joined, VisionEncoder):
    """Two vision encoders as one backbone."""


def joined(first: ImageEncoder, second: ImageEncoder, name: str | None = None) -> ImageEncoder:
    """Return two encoders as one backbone: a dual encoder if the first one is, else a vision encoder."""
    both = BothEncoders(first, second)
    return JoinedDualEncoder(both, name) if isinstance(first, DualEncoder) else JoinedVisionEncoder(both, name)
