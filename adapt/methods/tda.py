"""A stream of images that remembers: the surest images so far are a look-up table beside the zero-shot logits.

Paper: Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024 (TDA).
Reference: TDA `e697fb0`, `tda_runner.py`, `utils.py`.
Deviations:
* Weights and sharpnesses are the reference's for ImageNet; for other data sets it has others, tuned on test images.
* Views, where there are some, are random crops and flips; the reference mixes changes of colour and shape into them.

Nothing trains, and an adapter holds no tensor. A prediction costs a zero-shot one and a few products. A call of the
model on a batch, of `predict` or of `evaluate`, is a stream by itself; `model.stream()` goes on over calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from adapt.methods.base import ImageStep, Method, MethodConfig
from adapt.methods.base.traits import Stream
from adapt.methods.tpt import surest
from adapt.methods.zero_shot import Templates


class TDAConfig(MethodConfig):
    shots: int = Field(default=3, ge=1)
    """Images that are remembered for each class they were taken for, the surest so far."""
    alpha: float = Field(default=2.0, ge=0)
    """Weight of what they say."""
    beta: float = Field(default=5.0, gt=0)
    """Sharpness of the similarity to them."""
    negative_shots: int = Field(default=2, ge=1)
    """Images, neither sure nor unsure, that are remembered for what they are not."""
    negative_alpha: float = Field(default=0.117, ge=0)
    negative_beta: float = Field(default=1.0, gt=0)
    unsure: tuple[float, float] = (0.2, 0.5)
    """Between which entropies such an image is: in nats, over the binary logarithm of the number of classes."""
    improbable: tuple[float, float] = (0.03, 1.0)
    """Between which probabilities it speaks against a class."""
    views: int = Field(default=0, ge=0)
    """Random views of an image beside the image itself."""
    kept: float = Field(default=0.1, gt=0, le=1)
    """The share of the views, those of the surest answers, whose mean stands for the image."""
    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged."""


@dataclass(frozen=True)
class Remembered:
    """An image: its features `(e,)`, what it was taken for `(n,)`, and the entropy of that."""

    features: Tensor
    logits: Tensor
    probabilities: Tensor
    entropy: float


@dataclass
class Memory:
    """The images of a stream that are remembered, by the class that each was taken for."""

    sure: dict[int, list[Remembered]] = field(default_factory=dict)
    unsure: dict[int, list[Remembered]] = field(default_factory=dict)


class TDA(Method[ImageStep], Stream):
    """`TDA(shots, alpha, beta)` has no tensor: what it knows is in the memory of a stream."""

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
            return torch.stack([self._answer(seen, step.memory) for seen in self._seen(step)])

    def _seen(self, step: ImageStep) -> Sequence[Remembered]:
        if not self.views:
            features, logits = whole(step.features), whole(step.cosine_logits(step.class_features))
            probabilities = logits.softmax(-1)
        else:
            views = [self._surest(step, each) for each in whole(step.view_features)]
            features, logits, probabilities = (torch.stack(each) for each in zip(*views))
        entropies = -(probabilities * probabilities.clamp_min(1e-45).log()).sum(-1)
        return [Remembered(*each) for each in zip(features, logits, probabilities, entropies.tolist())]

    def _surest(self, step: ImageStep, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over the surest views `(v, e)` of one image: features, logits and probabilities."""
        logits = step.cosine_logits(step.class_features, views)
        kept = surest(logits, self.config.kept)
        return views[kept].mean(0), logits[kept].mean(0), logits[kept].softmax(-1).mean(0)

    def _answer(self, image: Remembered, memory: Memory) -> Tensor:
        """Logits `(n,)` of an image, which is remembered before."""
        config, classes = self.config, len(image.logits)
        taken_for = int(image.logits.argmax())
        remember(memory.sure.setdefault(taken_for, []), image, config.shots)
        least, most = config.unsure
        if classes > 1 and least < image.entropy / math.log2(classes) < most:
            remember(memory.unsure.setdefault(taken_for, []), image, config.negative_shots)
        logits = image.logits.clone()
        for label, kept in memory.sure.items():
            logits[label] += config.alpha * similarity(image, kept, config.beta).sum()
        for kept in memory.unsure.values():
            least, most = config.improbable
            against = torch.stack([(each.probabilities > least) & (each.probabilities < most) for each in kept])
            logits -= config.negative_alpha * similarity(image, kept, config.negative_beta) @ against.to(logits.dtype)
        return logits


def whole(x: Tensor) -> Tensor:
    """`x` in fp32, or more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def remember(kept: list[Remembered], image: Remembered, most: int) -> None:
    """Adds an image to those of its class: where there are `most`, in place of the least sure if it is surer."""
    if len(kept) == most:
        if image.entropy >= kept[-1].entropy:
            return
        kept.pop()
    kept.append(image)
    kept.sort(key=lambda each: each.entropy)  # of equals the older one comes first


def similarity(image: Remembered, kept: Sequence[Remembered], beta: float) -> Tensor:
    """Of an image to each of those that are kept `(k,)`: 1 where the features are the same."""
    cosines = torch.stack([each.features for each in kept]) @ image.features
    return (beta * (cosines - 1)).exp()
