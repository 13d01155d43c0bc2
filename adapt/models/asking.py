"""Checks for models that answer questions: each image has a question, and in training an answer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adapt.common.errors import AdaptError


def check(images: Tensor, texts: Sequence[str], kind: str = "question") -> None:
    """Raise AdaptError unless `images` is `(b, 3, h, w)` and `texts` is a list of b texts, such as questions."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        given = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else repr(images)
        raise AdaptError(f"images are {given}; expected the shape (b, 3, h, w), with one image for each {kind}")
    if isinstance(texts, str) or len(texts) != len(images):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {kind}s"
        raise AdaptError(f"got {given} about {len(images)} images: give a list with one {kind} for each image")
