"""TPT: test-time prompt tuning, which lowers the entropy of each image's answers by a step of the context.

Paper: Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, NeurIPS 2022 (TPT).
Reference: TPT `63ecbac`, `tpt_classification.py`, `clip/custom_clip.py`, `data/datautils.py`.
Deviations:
* Views are random crops and flips for every data set; the reference adds changes of colour and shape (AugMix)
  for fine-grained data sets, which it recognises by the length of their names.
* fp32 throughout; the reference's autocast to fp16 may skip a step.
* The images of a batch are answered one by one, each from the same start, as in the reference, whose batches have one.
* `learn: true` first trains the start as CoOp does; the reference loads a CoOp checkpoint (see `adapt convert`).
"""

from __future__ import annotations

from copy import deepcopy

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import AdamW

from adapt.common.untraced import untraced
from adapt.methods.base import Encoded, ImageStep
from adapt.methods.coop import CoOp, CoOpConfig


class TPTConfig(CoOpConfig):
    ctx_init: str = "a photo of a"
    """Words whose embeddings the context starts from; empty draws it from N(0, 0.02)."""
    learn: bool = False
    """Whether the initial context is first trained on labelled images, as CoOp's."""
    views: int = Field(default=63, ge=1)
    """The number of random views of an image beside the image itself."""
    kept: float = Field(default=0.1, gt=0, le=1)
    """The share of views, those with the most certain answers, that a step learns from; at least one view."""
    steps: int = Field(default=1, ge=1)
    """Steps for each image, after which the context is reset."""
    lr: float = Field(default=0.005, gt=0)
    """The learning rate of AdamW, whose weight decay is 0.01."""


class TPT(CoOp):
    """Test-time prompt tuning, in which the context is reset to `ctx` `(n_ctx, d)` and tuned anew for each image."""

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

    @untraced  # steps of an optimiser cannot be traced
    def infer(self, step: ImageStep) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            features = step.view_features.detach().clone()  # an inference tensor cannot enter a graph
            return torch.cat([self._answer(step, views) for views in features])

    def _answer(self, step: ImageStep, views: Tensor) -> Tensor:
        """Return the logits `(1, n)` of an image, the first of its `views` `(v, e)`, after tuning on the views."""
        own, sure = deepcopy(self).float(), None  # AdamW's eps is 0 in half precision
        own.requires_grad_()  # even if the original is frozen
        image = ImageStep(step.model, Encoded(views)).under(own)
        optimizer = AdamW(own.parameters(), lr=self.config.lr, weight_decay=0.01)
        for _ in range(self.config.steps):
            sure = surest(image.logits.detach(), self.config.kept) if sure is None else sure
            [own.ctx.grad] = torch.autograd.grad(mean_entropy(image.logits[sure]), [own.ctx])
            optimizer.step()
            image = image.again()
        return image.logits[:1].detach()


def surest(logits: Tensor, share: float) -> Tensor:
    """Return the indices of the fraction `share` of views with the lowest entropy, from the views' logits `(v, n)`."""
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return entropy.argsort(stable=True)[: max(1, int(share * len(logits)))]


def mean_entropy(logits: Tensor) -> Tensor:
    """Average the class probabilities of views with logits `(v, n)`, and return the entropy of the average."""
    log_p = logits.float().log_softmax(-1)
    log_mean = log_p.logsumexp(0) - torch.tensor(len(log_p), device=log_p.device).log()
    log_mean = log_mean.clamp_min(torch.finfo(log_mean.dtype).min)
    return -(log_mean * log_mean.exp()).sum()
