"""SS-Text: class texts plus sums of images, in closed form without steps, for classes of unequal size.

Papers: Silva-Rodríguez et al., Full Conformal Adaptation of Medical Vision-Language Models, IPMI 2025 (SS-Text);
Silva-Rodríguez et al., Towards a Realistic Few-Shot Adaptation of Medical Vision-Language Models, MICCAI 2025
(SS-Text+); Silva-Rodríguez and Konukoglu, arXiv 2603.02959 (SS-Text-U, which also learns from unlabelled images).
Reference: SS-Text-U `2af21ae`, `libs/solvers/{sstext,sstextu}.py`, `libs/archs/lp.py`.
Deviations:
* The transport of SS-Text-U is computed in logarithms. The reference's exponentials overflow at scale 100, CLIP's, and
  all its weights become NaN.
* Texts are weighted by the numbers of images alone, and the expected shares follow from them. (SS-Text `4ff4897`, an
  older repository, counts more than 1,000 training images as 1,000.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.methods.base import Encoded, ImageStep, Method, Training
from adapt.methods.base.method import no_prompts
from adapt.methods.base.traits import LearnsUnlabelled, LearnsUnseen
from adapt.methods.zero_shot import TemplatesConfig
from adapt.prompts import several

ROUNDS, BALANCINGS, ABSENT = 3, 10, 4.0  # the settings of SS-Text-U


class SSTextConfig(TemplatesConfig):
    variant: Literal["SS-Text", "SS-Text+", "SS-Text-U"] = "SS-Text+"
    """SS-Text: all images count alike. SS-Text+: images count by their class's share of all images, and the classes
    then repel each other. SS-Text-U: unlabelled images count too, shared out among the classes by optimal transport."""
    rounds: int = Field(default=ROUNDS, ge=0)
    """Of SS-Text-U: how often the weights are updated; at 0 only labelled images count."""
    balancings: int = Field(default=BALANCINGS, ge=0)
    """Of SS-Text-U: passes over classes and images in each transport; at 0 each image's probabilities are taken."""
    absent: float = Field(default=ABSENT, gt=0)
    """Of SS-Text-U: how many times as rarely as the smallest other class one without images is expected."""


class SSText(Method[ImageStep], LearnsUnseen, LearnsUnlabelled):
    """Texts plus the sums of their classes' images. `SSText(variant)` stores `weight` `(n_classes, e)`.

    A class without training images keeps its text, which SS-Text+ repels from the mean of all classes, like any other.
    """

    name = "ss_text"
    title = "SS-Text, SS-Text+ and SS-Text-U (Silva-Rodríguez et al., IPMI 2025)"
    Config = SSTextConfig
    per_class = True
    takes_steps = False
    prompts = no_prompts  # the weights already contain the texts
    weight: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.register_buffer("weight", torch.zeros(len(class_names), backbone.embed_dim, device=backbone.device))

    def prepare(self, training: Training) -> None:
        step = ImageStep(training.classifier, Encoded(training.features("train").to(self.weight)))
        texts, labels = step.frozen_class_features(several(self.config.template)), training.labels("train")
        known = texts.to(self.weight), step.features, labels.to(self.weight.device)
        if self.reads_unlabelled:
            unlabelled = training.features("unlabelled").to(self.weight)
            own = self.config.rounds, self.config.balancings, self.config.absent
            self.weight = with_unlabelled(*known, unlabelled, step.scale, *own)
        else:
            solve = by_frequency if self.config.variant == "SS-Text+" else alike
            self.weight = solve(*known, step.scale)

    @property
    def reads_unlabelled(self) -> bool:
        return self.config.variant == "SS-Text-U"

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


def with_unlabelled(
    texts: Tensor,
    features: Tensor,
    labels: Tensor,
    unlabelled: Tensor,
    scale: float,
    rounds: int = ROUNDS,
    balancings: int = BALANCINGS,
    absent: float = ABSENT,
) -> Tensor:
    """Return the class weights `(n, e)` of SS-Text-U, which adds unit-length features `(m, e)` of unlabelled images."""
    shares = labels.bincount(minlength=len(texts)) / len(labels)
    labelled = alike(texts, shares[labels, None] / 2 * features, labels, scale)
    weights = texts if rounds else labelled
    for _ in range(rounds):
        shared = transport(scale * unlabelled @ F.normalize(weights, dim=-1).T, expected(shares, absent), balancings)
        weights = labelled + scale / len(unlabelled) * shared.T @ unlabelled
    return weights


def expected(shares: Tensor, absent: float = ABSENT) -> Tensor:
    """Return the expected shares `(n,)` of the classes among unlabelled images, from those among labelled images."""
    raised = shares.where(shares > 0, shares[shares > 0].min() / absent)
    return raised / raised.sum()


def transport(logits: Tensor, shares: Tensor, balancings: int = BALANCINGS) -> Tensor:
    """Return how images are shared out among classes, `(m, n)`, from logits `(m, n)`, by Sinkhorn's algorithm.

    Each row sums to 1, and after several `balancings` the columns' means are nearly `shares` `(n,)`.
    """
    if not balancings:
        return logits.softmax(1)
    for _ in range(balancings):
        logits = logits - logits.logsumexp(0) + shares.log()  # of each class
        logits = logits - logits.logsumexp(1, keepdim=True)  # of each image
    return logits.exp()
