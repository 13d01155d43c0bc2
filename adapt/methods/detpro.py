"""Prompts that learn what is none of the classes: an image of nothing known is to look as much like each of them.

Paper: Du et al., Learning to Prompt for Open-Vocabulary Object Detection with Vision-Language Model, CVPR 2022.
Reference: detpro `9a14699`, `prompt/trainer.py`, `prompt/run.py`, its published mode ("soft").
Deviations:
* The reference trains on features of proposed regions; here an image, or a region cut out of one, is an item as any
  other, and the background is the class whose name is `background`.
* The grades of overlap, for each of which the reference trains a context, are left out: items do not say how much of an
  object a region holds.
* What is none of the classes is answered by a threshold on the largest probability, our own: chosen on the validation
  images, or on the training images without such, where as large a share of both kinds is answered rightly.
* CoOp's: `ctx_init` is counted in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.errors import AdaptError, nearest
from adapt.methods.base import Encoded, ImageStep, Terms, Training
from adapt.methods.base.training import Part
from adapt.methods.coop import CoOp, CoOpConfig


class DetProConfig(CoOpConfig):
    n_ctx: int | None = Field(default=8, ge=1)
    """Learned tokens."""
    background: str | None = None
    """The class of the data that holds what is none of the others; without one images are weighted by class alone."""


class DetPro(CoOp):
    """`DetPro(background="none")` trains `ctx` `(n_ctx, d)`, and keeps a `threshold` `()` for what is no class."""

    name = "detpro"
    title = "DetPro (Du et al., CVPR 2022)"
    Config = DetProConfig
    example: ClassVar[dict[str, Any]] = {"n_ctx": 4}
    logit_scale = 100.0
    weighs_classes = False  # but by itself, as published
    threshold: Tensor
    _weights: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        none = self.config.background
        if none is not None and none not in class_names:
            raise AdaptError(f"detpro: background is {none!r}, which is no class; {nearest(none, class_names)}")
        if none is not None and len(class_names) < 3:
            raise AdaptError(f"detpro tells two classes apart, or more, from {none!r}, and there are {class_names}")
        self.register_buffer("_weights", torch.ones(len(class_names), device=backbone.device), persistent=False)
        self.register_buffer("threshold", torch.tensor(2 / len(class_names), device=backbone.device))

    def prepare(self, training: Training) -> None:
        labels = training.labels("train")
        self.set_counts(labels.bincount(minlength=len(self._weights)), training.model.class_names)

    def set_counts(self, images: Tensor, class_names: Sequence[str]) -> None:
        """Weighs the classes by how many training images `(n,)` each has: one over that as a share of an even part."""
        known = self._known(class_names)
        shares = 2 * images / images.sum()
        shares[known] *= len(known) / 2
        self._weights = (1 / shares.clamp_min(1e-12)).to(self._weights)

    def training_state(self) -> dict[str, Tensor]:
        return {"weights": self._weights}

    def finish(self, training: Training) -> None:
        """Chooses the threshold where both kinds of images are there to choose it on."""
        model = training.model
        part: Part = "val" if training.items("val") else "train"
        unknown = ~torch.isin(training.labels(part), torch.tensor(self._known(model.class_names)))
        if not 0 < int(unknown.sum()) < len(unknown):
            return
        with torch.no_grad():
            sure = self.surest(ImageStep(model, Encoded(training.features(part)))).cpu()
        values = sure.sort().values
        between = (values[1:] + values[:-1]) / 2
        right = [(sure[unknown] < t).double().mean() + (sure[~unknown] >= t).double().mean() for t in between]
        best = between[int(torch.stack(right).argmax())]
        self.threshold.fill_(best)
        training.note(searched={"threshold": float(best), f"{part}_accuracy_of_both": float(max(right)) / 2})

    def logits(self, step: ImageStep) -> Tensor:
        names, known = step.model.class_names, self._of_known(step)
        if self.config.background not in names:
            return known
        place = names.index(self.config.background)
        # the largest where no probability among the known classes is as large as the threshold
        none = known.logsumexp(-1, keepdim=True) + self.threshold.log()
        return torch.cat([known[:, :place], none, known[:, place:]], dim=-1)

    def surest(self, step: ImageStep) -> Tensor:
        """The largest probability of each image `(b,)` among the known classes alone: low for what is none of them."""
        return self._of_known(step).softmax(-1).max(-1).values

    def loss(self, step: ImageStep) -> Terms:
        labels = step.labels
        assert labels is not None
        weights, apart = self._weights[labels], self._of_known(step).float().log_softmax(-1)
        place = torch.full_like(self._weights, -1, dtype=torch.long)
        known = self._known(step.model.class_names)
        place[known] = torch.arange(len(known), device=place.device)
        target = place[labels]
        of_known = -apart.gather(1, target.clamp_min(0)[:, None])[:, 0]
        losses = torch.where(target < 0, -apart.mean(-1), of_known) * weights / weights.sum()
        return {"known": losses[target >= 0].sum(), "background": losses[target < 0].sum()}

    def _of_known(self, step: ImageStep) -> Tensor:
        """Logits among the known classes `(b, c)`."""
        return step.cosine_logits(step.class_features[self._known(step.model.class_names)])

    def _known(self, class_names: Sequence[str]) -> list[int]:
        return [label for label, name in enumerate(class_names) if name != self.config.background]
