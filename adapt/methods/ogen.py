"""OGEN: prompts that also learn from generated features of unseen classes, made from names and neighbouring classes.

Paper: Zang et al., Overcoming the Pitfalls of Vision-Language Model Finetuning for OOD Generalization, ICLR 2024.
Reference: ml-ogen `ccfa0df`, `trainers/ogen.py`, its training step on CoOp's prompts.
Deviations:
* `train.objective` counts for the images alone; generated features keep the cross-entropy.
* The mean and standard deviation of each class's features come from the training images, without augmentation; the
  reference reads them from files that it does not include. The mean is not normalised.
* The unknown classes are named by `unknown_names`; the reference uses the other half of the data set. If they are the
  names tested later, compare only with methods that know these names too.
* The squared errors of generated features are multiplied by the width of a feature; the reference multiplies by 512,
  which is that of a CLIP ViT-B/16. So the losses differ on backbones of another width.
* As in CoOp here, `ctx_init` is counted in tokens, and the context is fp32.
* `teacher` is our reading of the paper's self-distillation, which the released code lacks. It pulls answers towards
  those of the mean context of the last 2 to 9 epochs, by the paper's rule, and is off by default.

The generator trains with the context. Checkpoints hold it; adapters do not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, Terms, Training, total
from adapt.methods.base.method import LearnsAside
from adapt.methods.coop import CoOp, CoOpConfig
from adapt.prompts import Prompt, check_class_names, of_classes

OF_KNOWN, OF_NEW, OF_IMAGES = 0.25, 0.5, 0.25  # weights of the cross-entropies
FEWEST, MOST = 2, 9  # epochs in the mean context of the teacher


class OGENConfig(CoOpConfig):
    ctx_init: str = "a photo of a"
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""
    unknown_names: tuple[str, ...] = ()
    """Names of classes without images, whose features are generated; without names, only known classes are fitted."""
    neighbours: int = Field(default=3, ge=1)
    """The number of nearest known classes from which features are generated, at most the number of names."""
    heads: int = Field(default=4, ge=1)
    """The number of heads of the generator's attention."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout on its attention weights."""
    alone: float = Field(default=0.2, ge=0, lt=1)
    """The share of epochs, from the first, in which only the generator learns."""
    teacher: float = Field(default=0.0, ge=0)
    """Weight of the distance to the answers of the mean context of the last epochs, our reading of the paper."""

    @model_validator(mode="after")
    def _shared(self) -> OGENConfig:
        if self.class_specific and self.unknown_names:
            raise ValueError("class_specific leaves unknown_names without context: leave one of the two settings out")
        return self


class OGEN(LearnsAside, CoOp):
    """CoOp with generated features. `OGEN()` trains `ctx` `(n_ctx, d)` and a generator that is not in adapters."""

    name = "ogen"
    title = "OGEN (Zang et al., ICLR 2024)"
    Config = OGENConfig
    example = {"unknown_names": ("apple pie", "toy"), "neighbours": 2, "dropout": 0.0}
    needs_every_class = True
    _mean: Tensor
    _spread: Tensor
    _near: Tensor
    _past: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        super().build(backbone, class_names)
        if len(class_names) < 2:
            raise AdaptError(
                f"ogen: the only class is {class_names[0]!r}; expected two or more, as features come from other classes"
            )
        size, device = backbone.embed_dim, backbone.device
        if size % self.config.heads:
            raise AdaptError(f"ogen: heads is {self.config.heads}; expected a divisor of {size}, the size of a feature")
        self._unknown = self._unknown_prompts(backbone, class_names)
        self.set_aside({"generator": Generator(size, self.config.heads, self.config.dropout)}, device)
        self._k = min(self.config.neighbours, len(class_names) - 1, len(self._unknown) or len(class_names))
        buffers = {"_mean": torch.zeros(len(class_names), size), "_spread": torch.zeros(len(class_names), size)}
        buffers["_near"] = torch.zeros(len(class_names), self._k, dtype=torch.long)
        buffers["_past"] = torch.zeros(MOST, *self.ctx.shape)  # the contexts of the last epochs, newest first
        for name, values in buffers.items():
            self.register_buffer(name, values.to(device), persistent=False)
        self._done, self._epochs = torch.zeros((), dtype=torch.long), 1  # finished epochs, and all epochs

    def _unknown_prompts(self, backbone: DualEncoder, class_names: Sequence[str]) -> list[Prompt]:
        """Return the prompts of `unknown_names`. Raises AdaptError for invalid names and names of known classes."""
        if not self.config.unknown_names:
            return []
        names = check_class_names(self.config.unknown_names)
        if known := set(names) & set(class_names):
            raise AdaptError(f"ogen: unknown_names has {min(known)!r}, which is a class with images: remove this name")
        prompts = of_classes(backbone.tokenizer, names, lambda name: self.prompts(backbone.tokenizer, name))
        return [prompt for own in prompts for prompt in own]

    @property
    def generator(self) -> Generator:
        return cast("Generator", self.aside["generator"])

    def training_state(self) -> dict[str, Tensor]:
        return {"done": self._done, "past": self._past} | super().training_state()

    def prepare(self, training: Training) -> None:
        if training.settings.epochs is None:
            raise AdaptError(
                "train.epochs is missing: set the number of epochs, as ogen first trains only its generator"
            )
        self._epochs = training.settings.epochs
        features, labels = training.features("train").to(self._mean), training.labels("train")
        groups = [features[labels.to(features.device) == label] for label in range(len(self._mean))]
        spread = torch.stack([own.std(0, correction=0) for own in groups])
        self.set_statistics(torch.stack([own.mean(0) for own in groups]), spread)

    def set_statistics(self, mean: Tensor, spread: Tensor) -> None:
        """Set mean and standard deviation `(n, e)` of each class's features, and find each class's nearest classes."""
        similarity = (mean @ mean.T).fill_diagonal_(-torch.inf)
        self._mean, self._spread = mean, spread
        self._near = similarity.topk(self._k).indices

    def epoch_done(self, epoch: int, epochs: int) -> None:
        self._done.fill_(epoch + 1)
        with torch.no_grad():
            self._past.copy_(self._past.roll(1, 0))
            self._past[0] = self.ctx

    def loss(self, step: ImageStep) -> Terms:
        labels, known, size = step.labels, step.class_features, step.features.shape[-1]
        assert labels is not None
        self.generator.train(self.training)
        own, near = known[labels].detach()[:, None], known[self._near[labels]].detach()  # (b, 1, e), (b, k, e)
        images, target = step.features[:, None], self._sampled(labels)
        of_unknown = self.generator(own, near, target)
        of_known = self.generator(near, own, images)
        terms = {"unknown": size * F.mse_loss(of_unknown, step.features)}
        if int(self._done) < int(self.config.alone * self._epochs):
            return terms | {"known": size * F.mse_loss(of_known, target.flatten(0, 1))}
        terms["known"] = size * F.mse_loss(of_known, self._sampled(labels).flatten(0, 1))
        terms["image_class"] = OF_IMAGES * total(step.task_loss())
        logits = step.cosine_logits(known, of_unknown), step.cosine_logits(known, of_known)
        terms["unknown_class"] = OF_KNOWN * F.cross_entropy(logits[0].float(), labels)
        terms["known_class"] = OF_KNOWN / self._k * F.cross_entropy(logits[1].float(), self._near[labels].flatten())
        if self._unknown:
            new = step.encode(self._unknown)  # of which those nearest to each image's class are generated
            chosen = (own[:, 0] @ new.T).topk(self._k).indices
            of_new = step.cosine_logits(new, self.generator(new[chosen], own, images))
            terms["new_class"] = OF_NEW / self._k * F.cross_entropy(of_new.float(), chosen.flatten())
        if self.config.teacher:
            terms["teacher"] = self.config.teacher * self._teacher_loss(step)
        return terms

    def _sampled(self, labels: Tensor) -> Tensor:
        """Return features `(b, k, e)` sampled by one draw around the means of the k classes nearest to each label."""
        near = self._near[labels]
        return self._mean[near] + torch.rand(1, self._mean.shape[-1]).to(self._mean) * self._spread[near]

    def _teacher_loss(self, step: ImageStep) -> Tensor:
        """Return the mean squared difference from a teacher's probabilities with the mean context of recent epochs."""
        done = int(self._done)
        if not done:
            return 0 * step.logits.sum()
        turn = 1 + math.cos((self._epochs + done) / self._epochs * math.pi)
        window = min(done, math.floor(turn * (MOST - FEWEST) / 2 + FEWEST))
        other = copy.copy(self)
        other._parameters = {"ctx": nn.Parameter(self._past[:window].mean(0), requires_grad=False)}
        with torch.no_grad():
            answers = step.under(other).logits.softmax(-1)
        return F.mse_loss(step.logits.softmax(-1), answers)


class Generator(nn.Module):
    """An attention layer and MLP that generate features of a class from texts and other classes' image features.

    Queries `(b, q, e)`, keys and values `(b, k, e)` give unit-length features `(b * q, e)`.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(size, heads, dropout, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        attended, _ = self.multihead_attn(queries, keys, values, need_weights=False)
        return F.normalize(self.ffn(queries) + attended, dim=-1).flatten(0, 1)
