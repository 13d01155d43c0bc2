"""DetPro: prompts for open-vocabulary recognition with a background, which must be equally unlike every class.

Paper: Du et al., Learning to Prompt for Open-Vocabulary Object Detection with Vision-Language Model, CVPR 2022.
Reference: detpro `9a14699`, `prompt/trainer.py`, `prompt/run.py`, its published mode ("soft").
Deviations:
* The reference trains on features of proposed regions. Here the items are images, or regions cut out of images, and
  the background is the class named by `background`.
* A grade is a range of overlap between a region and its object's box. The contexts of all grades train together, each
  on the regions of its grade and on all background in a batch; the reference has a run for each grade.
* Background is recognised by a threshold on the largest probability, which is ours. It is chosen on the validation
  images, or else on the training images, for the best mean accuracy on known classes and background.
* As in CoOp here, `ctx_init` is counted in tokens.
* With `learn`, all grades share the background's prompt; the reference ends it with what it takes from the third class.
  Its unused modes (`mean`, `meanbg`, `max`, `fg_only`) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError, nearest
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, Encoded, ImageStep, Terms, Training
from adapt.methods.base.training import Part
from adapt.methods.base.traits import LearnsOverlaps
from adapt.methods.coop import CoOp, CoOpConfig
from adapt.prompts import PLACEHOLDER, Prompt, initial_context, of_text

_OF_BACKGROUND = 10  # the tokens of a learned background, as published


class DetProConfig(CoOpConfig):
    n_ctx: int | None = Field(default=8, ge=1)
    """The number of learned tokens."""
    background: str | None = None
    """The background class, which holds images of no other class. Without one, images are only weighted by class."""
    mode: Literal["soft", "hinge", "learn"] = "soft"
    """How background is learned: as equally unlike every class, as no class being more probable than at random
    (`hinge`), or as one more class with a prompt of its own (`learn`)."""
    grades: tuple[float, ...] = ()
    """The lower bounds of overlap grades, each with a context of its own; published: 0.5, 0.6, 0.7, 0.8, 0.9."""

    @model_validator(mode="after")
    def _graded(self) -> DetProConfig:
        ends = (*self.grades, 1.0)
        if len(ends) == 2 or any(not 0 <= low < high for low, high in pairwise(ends)):
            raise ValueError(f"grades are {list(self.grades)}; expected two or more rising numbers from 0 to below 1")
        if self.grades and self.class_specific:
            raise ValueError("with grades, all classes share a context for each grade: leave class_specific out")
        if self.mode == "learn" and (self.background is None or self.class_specific):
            raise ValueError("mode is learn, which needs a background, and a context that the other classes share")
        return self


class DetPro(CoOp, LearnsOverlaps):
    """Learned prompts with a background class. `DetPro(background="none")` trains `ctx` `(n_ctx, d)`.

    The adapter also stores a `threshold` `()` for recognising background. Grades are ranges of overlap between an image
    region and its object's box. With `grades`, `ctx` is `(grades, n_ctx, d)`, and class features are means over grades.
    With `mode="learn"`, `bg_prompt` `(10, d)` is the background's whole prompt, and there is no use for a threshold.
    """

    name = "detpro"
    title = "DetPro (Du et al., CVPR 2022)"
    Config = DetProConfig
    example = {"n_ctx": 4}
    logit_scale = 100.0
    weighs_classes = False  # it has its own class weights, as published
    threshold: Tensor
    _weights: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        background = self.config.background
        if background is not None and background not in class_names:
            raise AdaptError(
                f"detpro: background is {background!r}, which is not a class; {nearest(background, class_names)}"
            )
        if background is not None and len(class_names) < 3:
            raise AdaptError(f"detpro: classes are {class_names}; expected two or more besides {background!r}")
        grades = len(self.config.grades)
        if grades:
            starts = [initial_context(backbone, self.config.ctx_init, len(self.ctx)) for _ in range(grades)]
            self.ctx = nn.Parameter(torch.stack(starts))
        if self.config.mode == "learn":
            prompt = torch.empty(_OF_BACKGROUND, backbone.tower("text").width).normal_(std=0.02)
            self.bg_prompt = nn.Parameter(prompt.to(backbone.device))
        weights = torch.ones(grades or 1, len(class_names), device=backbone.device)
        self.register_buffer("_weights", weights, persistent=False)
        self.register_buffer("threshold", torch.tensor(2 / len(class_names), device=backbone.device))

    @property
    def of_overlaps(self) -> bool:
        return bool(self.config.grades)

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        """Return the prompt of a class, or with `grades`, one prompt with its own learned tokens for each grade."""
        grades, n_ctx = max(1, len(self.config.grades)), self.ctx.shape[-2]
        starts = range(0, n_ctx * grades, n_ctx)
        if self.config.mode == "learn" and class_name == self.config.background:
            prompt = of_text(tokenizer, " ".join([PLACEHOLDER] * _OF_BACKGROUND))
            first = prompt.ids.index(tokenizer.pieces(PLACEHOLDER)[0])
            learned = range(starts.stop, starts.stop + _OF_BACKGROUND)
            slots = (None,) * first + (*learned,) + (None,) * (len(prompt.ids) - first - _OF_BACKGROUND)
            return [replace(prompt, slots=slots)] * grades
        [prompt] = super().prompts(tokenizer, class_name)
        return [replace(prompt, slots=tuple(s if s is None else start + s for s in prompt.slots)) for start in starts]

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        values = self.ctx.flatten(0, 1) if self.config.grades else self.ctx
        return [Tokens(torch.cat([values, self.bg_prompt]) if self.config.mode == "learn" else values)]

    def prepare(self, training: Training) -> None:
        names, labels = training.model.class_names, training.labels("train")
        overlaps = self._overlaps(training) if self.config.grades else None
        learning = self._learning(labels, overlaps, names)
        counts = torch.stack([labels[own].bincount(minlength=len(names)) for own in learning])
        for (low, high), count in zip(pairwise((*self.config.grades, 1.0)), counts[:, self._known(names)]):
            if not count.any():
                raise AdaptError(
                    f"detpro: no training region of a known class has an overlap from {low:g} to {high:g}, which is a "
                    f"grade in method.grades {list(self.config.grades)}: add such regions, or remove this grade"
                )
        self.set_counts(counts, names)

    def _overlaps(self, training: Training) -> Tensor:
        """Return the overlaps `(n,)` of the training regions. Raises AdaptError if an object's region has no grade."""
        overlaps = training.values("train").float()
        for item, overlap in zip(training.items("train"), overlaps.tolist(), strict=True):
            if item.answer != self.config.background and overlap < self.config.grades[0]:
                raise AdaptError(
                    f"detpro: {item.name!r} of class {item.answer!r} has an overlap of {overlap:g}; expected at least "
                    f"{self.config.grades[0]:g}, the lowest of method.grades: label the region as background"
                )
        return overlaps

    def set_counts(self, images: Tensor, class_names: Sequence[str]) -> None:
        """Set the class weights of the loss from the numbers of training images per class, `(n,)` or `(grades, n)`.

        Weights are inversely proportional to these numbers. All known classes get the same total weight, and background
        gets half the total weight of the known classes together.
        """
        known = self._known(class_names)
        shares = 2 * images / images.sum(-1, keepdim=True)
        shares[..., known] *= len(known) / 2
        self._weights = (1 / shares.clamp_min(1e-12)).to(self._weights).reshape(self._weights.shape)

    def training_state(self) -> dict[str, Tensor]:
        return {"weights": self._weights}

    def finish(self, training: Training) -> None:
        """Choose the background threshold if the data contains images of known classes and images of background."""
        model = training.classifier
        part: Part = "val" if training.items("val") else "train"
        unknown = ~torch.isin(training.labels(part), torch.tensor(self._known(model.class_names)))
        if not 0 < int(unknown.sum()) < len(unknown) or self.config.mode == "learn":
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
        names = step.model.class_names
        if self.config.mode == "learn":
            return self._among(step, range(len(names)))
        known = self._among(step, self._known(names))
        if self.config.background not in names:
            return known
        place = names.index(self.config.background)
        # the largest logit if no probability among the known classes reaches the threshold
        none = known.logsumexp(-1, keepdim=True) + self.threshold.log()
        return torch.cat([known[:, :place], none, known[:, place:]], dim=-1)

    def surest(self, step: ImageStep) -> Tensor:
        """Return each image's largest probability among the known classes `(b,)`, which is low for background."""
        return self._among(step, self._known(step.model.class_names)).softmax(-1).max(-1).values

    def loss(self, step: ImageStep) -> Terms:
        labels, names = step.labels, step.model.class_names
        assert labels is not None
        mode = self.config.mode
        compared = list(range(len(names))) if mode == "learn" else self._known(names)
        place = torch.full_like(self._weights[0], -1, dtype=torch.long)
        place[compared] = torch.arange(len(compared), device=place.device)
        target, losses = place[labels], torch.zeros(len(labels), device=labels.device)
        learning = self._learning(labels, step.values, names)
        for features, own, each in zip(self._of_grades(step), learning, self._weights, strict=True):
            apart, weights = step.cosine_logits(features[compared]).float().log_softmax(-1), each[labels] * own
            of_known = -apart.gather(1, target.clamp_min(0)[:, None])[:, 0]
            count = own.sum() if mode == "hinge" else weights.sum()
            mean = weights / count.clamp_min(1e-12)  # zero for a batch without regions of the grade
            of_none = (apart.exp() - 1 / len(compared)).clamp_min(0).sum(-1) if mode == "hinge" else -apart.mean(-1)
            losses = losses + torch.where(target < 0, of_none, of_known) * mean
        none = ~torch.isin(labels, torch.tensor(self._known(names), device=labels.device))
        return {"known": losses[~none].sum(), "background": losses[none].sum()}

    def _learning(self, labels: Tensor, overlaps: Tensor | None, class_names: Sequence[str]) -> Tensor:
        """Return a mask `(grades, b)` of the images for training each grade (its own regions and all background)."""
        if not self.config.grades:
            return torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
        if overlaps is None:
            raise AdaptError(
                "detpro: method.grades needs overlaps, but the batch has no overlaps: give regions with overlaps, or "
                "leave method.grades out"
            )
        grade = torch.bucketize(overlaps, overlaps.new_tensor(self.config.grades), right=True) - 1
        of_background = ~torch.isin(labels, torch.tensor(self._known(class_names), device=labels.device))
        return (grade == torch.arange(len(self.config.grades), device=grade.device)[:, None]) | of_background

    def _of_grades(self, step: ImageStep) -> Tensor:
        """Return unit-length class features `(grades, n, e)`, computed with the learned context of each grade."""
        return torch.stack(step.prompt_features, dim=1) if self.config.grades else step.class_features[None]

    def _among(self, step: ImageStep, labels: Sequence[int]) -> Tensor:
        """Return the logits `(b, c)` of c classes."""
        # with grades, step.class_features would encode the prompts a second time in a training step
        features = F.normalize(self._of_grades(step).mean(0), dim=-1) if self.config.grades else step.class_features
        return step.cosine_logits(features[list(labels)])

    def _known(self, class_names: Sequence[str]) -> list[int]:
        return [label for label, name in enumerate(class_names) if name != self.config.background]
