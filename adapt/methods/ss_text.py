"""SS-Text: a linear probe held to the class texts, in closed form without steps, for classes of unequal size.

Papers: Silva-Rodríguez et al., Full Conformal Adaptation of Medical Vision-Language Models, IPMI 2025 (SS-Text);
Silva-Rodríguez et al., Towards a Realistic Few-Shot Adaptation of Medical Vision-Language Models, MICCAI 2025
(SS-Text+).
Reference: SS-Text-U `2af21ae`, `libs/solvers/sstext.py`, `libs/archs/lp.py`.
Deviations: none. (SS-Text `4ff4897`, an older repository, counts more than 1,000 training images as 1,000.)
Left out: SS-Text-U (Silva-Rodríguez and Konukoglu, arXiv 2603.02959), which also reads images without labels, because
methods are given labelled images alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.methods.base import Encoded, ImageStep, Method, MethodConfig, Training
from adapt.methods.base.traits import LearnsUnseen
from adapt.methods.zero_shot import Templates
from adapt.prompts import Prompt, several


class SSTextConfig(MethodConfig):
    by_frequency: bool = True
    """Whether a class's images count by the class's share of all images, and the classes then repel each other
    (SS-Text+); otherwise all images count alike (SS-Text)."""
    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged."""


class SSText(Method[ImageStep], LearnsUnseen):
    """Texts plus the sums of their classes' images. `SSText(by_frequency)` stores `weight` `(n_classes, e)`.

    A class without training images keeps its text, which SS-Text+ repels from the mean of all classes, like any other.
    """

    name = "ss_text"
    title = "SS-Text and SS-Text+ (Silva-Rodríguez et al., IPMI 2025)"
    Config = SSTextConfig
    per_class = True
    takes_steps = False
    weight: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.register_buffer("weight", torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device))

    def prepare(self, training: Training) -> None:
        step = ImageStep(training.classifier, Encoded(training.features("train").to(self.weight)))
        texts, labels = step.frozen_class_features(several(self.config.template)), training.labels("train")
        solve = by_frequency if self.config.by_frequency else alike
        self.weight = solve(texts.to(self.weight), step.features, labels.to(self.weight.device), step.scale)

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        return []  # the weights already contain the texts

    def logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(F.normalize(self.weight, dim=-1))


def alike(texts: Tensor, features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the class weights `(n, e)` of SS-Text, from unit-length texts `(n, e)` and image features `(b, e)`."""
    return texts + scale * torch.zeros_like(texts).index_add(0, labels, features)


def by_frequency(texts: Tensor, features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the class weights `(n, e)` of SS-Text+, from unit-length texts `(n, e)` and image features `(b, e)`."""
    shares = labels.bincount(minlength=len(texts)) / len(labels)
    weights = alike(texts, shares[labels, None] * features, labels, scale)
    return weights - F.normalize(2 * weights - weights.mean(0), dim=-1)  # repels each class from the mean of all
