"""TDA: test-time adaptation by a cache of the most certain images of a stream, added to the zero-shot logits.

Paper: Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024 (TDA).
Reference: TDA `e697fb0`, `tda_runner.py`, `utils.py`.
Deviations:
* Weights and sharpnesses are the reference's for ImageNet; its others were tuned on the test images of each data set.
* Optional views are random crops and flips; the reference also changes colours and shapes.

Nothing trains, and an adapter holds no tensors. A prediction costs a zero-shot prediction and a few products. Each call
of the model on a batch, of `predict` or of `evaluate` is a stream of its own; `model.stream()` spans several calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Method
from adapt.methods.base.traits import Stream
from adapt.methods.tpt import surest
from adapt.methods.zero_shot import TemplatesConfig


class TDAConfig(TemplatesConfig):
    shots: int = Field(default=3, ge=1)
    """The number of most certain images in the cache for each predicted class."""
    alpha: float = Field(default=2.0, ge=0)
    """Weight of the cache's logits."""
    beta: float = Field(default=5.0, gt=0)
    """Sharpness of the similarity to cached images."""
    negative_shots: int = Field(default=2, ge=1)
    """The number of moderately certain images in the negative cache for each predicted class."""
    negative_alpha: float = Field(default=0.117, ge=0)
    """Weight of the negative cache's logits."""
    negative_beta: float = Field(default=1.0, gt=0)
    """Sharpness of the similarity to images in the negative cache."""
    unsure: tuple[float, float] = (0.2, 0.5)
    """The range of entropies of such images, in nats over the binary logarithm of the number of classes."""
    improbable: tuple[float, float] = (0.03, 1.0)
    """The range of probabilities of a class for which such an image is evidence against it."""
    views: int = Field(default=0, ge=0)
    """The number of random views of an image beside the image itself."""
    kept: float = Field(default=0.1, gt=0, le=1)
    """The share of views, those with the most certain answers, whose mean represents the image."""


@dataclass(frozen=True)
class Remembered:
    """A cached image, with its features `(e,)`, logits `(n,)`, class probabilities `(n,)` and entropy."""

    features: Tensor
    logits: Tensor
    probabilities: Tensor
    entropy: float


@dataclass
class Memory:
    """Two caches of a stream of images by predicted class: `sure` for certain and `unsure` for less certain images."""

    sure: dict[int, list[Remembered]] = field(default_factory=dict)
    unsure: dict[int, list[Remembered]] = field(default_factory=dict)


class TDA(Method[ImageStep], Stream):
    """A training-free method that corrects an image's logits by a cache of earlier images of the same stream."""

    name = "tda"
    title = "TDA (Karmanov et al., CVPR 2024)"
    Config = TDAConfig
    logit_scale = 100.0  # written out in the reference

    @property
    def views(self) -> int:
        return int(self.config.views)

    def memory(self) -> Memory:
        return Memory()

    def infer(self, step: ImageStep) -> Tensor:
        with torch.no_grad():
            return torch.stack([self._answer(image, step.memory) for image in self._images(step)])

    def _images(self, step: ImageStep) -> Sequence[Remembered]:
        if not self.views:
            features, logits = at_least_fp32(step.features), at_least_fp32(step.cosine_logits(step.class_features))
            probabilities = logits.softmax(-1)
        else:
            means = []  # over the most certain views (v, e) of each image
            for views in at_least_fp32(step.view_features):
                own = step.cosine_logits(step.class_features, views)
                best = surest(own, self.config.kept)
                means.append((views[best].mean(0), own[best].mean(0), own[best].softmax(-1).mean(0)))
            features, logits, probabilities = (torch.stack(each) for each in zip(*means))
        entropies = -(probabilities * probabilities.clamp_min(1e-45).log()).sum(-1)
        return [Remembered(*each) for each in zip(features, logits, probabilities, entropies.tolist())]

    def _answer(self, image: Remembered, memory: Memory) -> Tensor:
        """Store an image in the caches of `memory`, and return the image's logits `(n,)`, corrected by the caches."""
        config, classes = self.config, len(image.logits)
        predicted = int(image.logits.argmax())
        remember(memory.sure.setdefault(predicted, []), image, config.shots)
        least, most = config.unsure
        if classes > 1 and least < image.entropy / math.log2(classes) < most:
            remember(memory.unsure.setdefault(predicted, []), image, config.negative_shots)
        logits = image.logits.clone()
        for label, cached in memory.sure.items():
            logits[label] += config.alpha * similarity(image, cached, config.beta).sum()
        for cached in memory.unsure.values():
            least, most = config.improbable
            against = torch.stack([(each.probabilities > least) & (each.probabilities < most) for each in cached])
            logits -= config.negative_alpha * similarity(image, cached, config.negative_beta) @ against.to(logits.dtype)
        return logits


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or unchanged if `x` has a higher precision such as fp64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def remember(cached: list[Remembered], image: Remembered, most: int) -> None:
    """Add an image to the `cached` images of a class, and keep only the `most` images with the lowest entropy."""
    if len(cached) == most:
        if image.entropy >= cached[-1].entropy:
            return
        cached.pop()
    cached.append(image)
    cached.sort(key=lambda each: each.entropy)  # the older of two equals comes first


def similarity(image: Remembered, cached: Sequence[Remembered], beta: float) -> Tensor:
    """Return the similarities `(k,)` of an image to k cached images, where 1 means equal features."""
    cosines = torch.stack([each.features for each in cached]) @ image.features
    return (beta * (cosines - 1)).exp()
