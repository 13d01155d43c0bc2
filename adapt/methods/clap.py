"""CLAP: a linear probe that starts from the class features of hand-written prompts, with a penalty for leaving them.

Paper: Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, CVPR 2024
(CLAP, and without the constraint ZS-LP).
Reference: CLAP `dbdf409`, `trainers/adapters.py`.
Deviations:
* Underscores of class names read as spaces, as in every method.
* An epoch takes one view of each image; the reference's epoch has as many steps, over rows drawn from all views.
* Of the reference's constraints, those by cosines are left out, as all published runs measure squared distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.methods.base import Encoded, ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.method import no_prompts
from adapt.methods.base.plain_classifier import class_means
from adapt.methods.base.training import rows_of
from adapt.methods.zero_shot import Templates
from adapt.prompts import several


class CLAPConfig(MethodConfig):
    constraint: Literal["l2", "adaptive", "corrected", "constant", "balanced", "none"] = "l2"
    """The penalty on a class's weights: `l2`, their squared distance from the text feature, larger for a class that
    zero-shot recognises better; or `none` (ZS-LP). `adaptive` is `l2` at first, and grows after each epoch for classes
    that have moved; `corrected` scales the weights of `l2` to a mean of 1; `constant` is their mean, and `balanced` 1,
    for all classes."""
    template: Templates = "a photo of a {}."
    """One template, or several whose features are averaged before normalisation."""


class CLAP(Method[ImageStep]):
    """A linear probe that is kept near text features. `CLAP(constraint)` trains `prototypes` `(n_classes, e)`."""

    name = "clap"
    title = "CLAP and ZS-LP (Silva-Rodriguez et al., CVPR 2024)"
    Config = CLAPConfig
    per_class = True
    begins_anew = True
    needs_every_class = True
    _multipliers: Tensor
    _moved: Tensor
    _base: Tensor
    prompts = no_prompts  # the template is read by the frozen model alone

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        classes, device = len(class_names), backbone.device
        self.prototypes = nn.Parameter(torch.zeros(classes, backbone.embed_dim, device=device))
        for name in ("_multipliers", "_moved"):
            self.register_buffer(name, torch.zeros(classes, device=device), persistent=False)
        self.register_buffer("_base", torch.zeros_like(self.prototypes), persistent=False)

    def prepare(self, training: Training) -> None:
        """Initialise the prototypes with text features, and weight each class by its mean zero-shot probability."""
        base = training.classifier.frozen_class_features(several(self.config.template), "raw")
        with torch.no_grad():
            self.prototypes.copy_(base)
        self._base = base.to(self.prototypes)
        constraint, even = self.config.constraint, torch.ones_like(self._multipliers)
        if constraint == "balanced":
            self._multipliers = even
        elif constraint != "none":
            rows, labels = rows_of(training, training.settings.views or 0, base.device)
            logits = ImageStep(training.classifier, Encoded(rows)).cosine_logits(F.normalize(base, dim=-1))
            own = logits.softmax(-1).gather(1, labels[:, None])  # every class has an image
            sure = class_means(own, labels, len(base))[:, 0]
            changed = {"corrected": sure / sure.mean(), "constant": sure.mean() * even}
            self._multipliers = changed.get(constraint, sure)

    def logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(F.normalize(self.prototypes, dim=-1))

    def loss(self, step: ImageStep) -> Terms:
        terms = super().loss(step)
        if self.config.constraint != "none":
            terms["constraint"] = (self._multipliers * self._apart()).mean()
        return terms

    def _apart(self) -> Tensor:
        """Return each class's squared distance `(n,)` from its text feature."""
        return (self.prototypes - self._base).square().sum(-1)

    @torch.no_grad()
    def epoch_done(self, epoch: int, epochs: int) -> None:
        """Take a step of the augmented Lagrangian, if `adaptive`: its rate is the distance an epoch before, first 0."""
        if self.config.constraint == "adaptive":
            apart = self._apart()
            self._multipliers = self._multipliers + self._moved * apart
            self._moved = apart

    def training_state(self) -> dict[str, Tensor]:
        return {"multipliers": self._multipliers, "moved": self._moved}
