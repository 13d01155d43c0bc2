"""Test-time prompt tuning: for each image alone, the words around the class names take a step to surer answers.

Paper: Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, NeurIPS 2022 (TPT).
Reference: TPT `63ecbac`, `tpt_classification.py`, `clip/custom_clip.py`, `data/datautils.py`.
Deviations:
* Views are random crops and flips for every data set; the reference mixes several changes of colour and shape (AugMix)
  into those of the fine-grained ones, which it tells by the length of their names.
* fp32 throughout; the reference's autocast to fp16 may leave a step out.
* The images of a batch are answered one by one, each from the same start, as there with a batch of one.
* `learn: true` first trains the start as CoOp does; the reference loads a CoOp checkpoint (see `adapt convert`).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW

from adapt.methods.base import Encoded, ImageStep
from adapt.methods.coop import CoOp, CoOpConfig


class TPTConfig(CoOpConfig):
    ctx_init: str = "a photo of a"
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""
    learn: bool = False
    """Whether the start is trained on labelled images, as CoOp's context."""
    views: int = Field(default=63, ge=1)
    """Random views of an image beside the image itself."""
    kept: float = Field(default=0.1, gt=0, le=1)
    """The share of the views, those of the surest answers, that a step learns from; at least one."""
    steps: int = Field(default=1, ge=1)
    """Steps for each image, after which the context is the start again."""
    lr: float = Field(default=0.005, gt=0)
    """Of AdamW, whose weight decay is 0.01."""


class TPT(CoOp):
    """`TPT(n_ctx, ctx_init, views, kept, steps, lr)` starts every image from `ctx` `(n_ctx, d)`."""

    name = "tpt"
    title = "TPT (Shu et al., NeurIPS 2022)"
    Config = TPTConfig
    example = {"views": 3, "kept": 0.5}

    @property
    def takes_steps(self) -> bool:
        return bool(self.config.learn)

    @property
    def views(self) -> int:
        return int(self.config.views)

    @torch.compiler.disable  # steps of an optimiser are not to be traced
    def infer(self, step: ImageStep) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            features = step.view_features.detach().clone()  # an inference tensor cannot enter a graph
            return torch.cat([self._answer(step, views) for views in features])

    def _answer(self, step: ImageStep, views: Tensor) -> Tensor:
        """Logits `(1, n)` of the image whose views have these features `(v, e)`, itself first."""
        own, sure = deepcopy(self).float(), None  # AdamW's eps is nothing in half precision
        own.requires_grad_()  # whatever the owner has switched off
        image = ImageStep(step.model, Encoded(views)).under(own)
        optimizer = AdamW(own.parameters(), lr=self.config.lr, weight_decay=0.01)
        for _ in range(self.config.steps):
            sure = surest(image.logits.detach(), self.config.kept) if sure is None else sure
            [own.ctx.grad] = torch.autograd.grad(mean_entropy(image.logits[sure]), [own.ctx])
            optimizer.step()
            image = image.again()
        return image.logits[:1].detach()


def surest(logits: Tensor, share: float) -> Tensor:
    """Which of the views' logits `(v, n)` have the lowest entropy: the positions of that share of them."""
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return entropy.argsort(stable=True)[: max(1, int(share * len(logits)))]


def mean_entropy(logits: Tensor) -> Tensor:
    """The entropy of the mean probabilities that views' logits `(v, n)` give."""
    log_p = logits.float().log_softmax(-1)
    log_mean = log_p.logsumexp(0) - torch.tensor(len(log_p), device=log_p.device).log()
    log_mean = log_mean.clamp_min(torch.finfo(log_mean.dtype).min)
    return -(log_mean * log_mean.exp()).sum()
