"""ProLIP: the vision tower's last projection, fine-tuned with a penalty on the distance from its frozen weights.

Paper: Fahes et al., CLIP's Visual Embedding Projector is a Few-shot Cornucopia, 2024 (ProLIP).
Reference: ProLIP `b43e795`, `methods/ProLIP.py`.
Deviations:
* Twenty views of each image are encoded once; the reference encodes three hundred, one for each epoch.
* The learning rate and the weight are not chosen on validation images; they are the reference's for base-to-new.
* The scale is 100, as in the reference; ResNets, which have another kind of projection, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError
from adapt.edits import Edit, Replace
from adapt.methods.base import Context, ImageStep, Method, Training
from adapt.methods.clip_svd import Composed
from adapt.methods.zero_shot import TemplatesConfig

SCALE = 100.0


class ProLIPConfig(TemplatesConfig):
    views: int = Field(default=20, ge=0)
    """Random views of each training image, used in turn, one an epoch; 0 uses the image as it is."""
    epochs: int = Field(default=300, ge=1)
    """The number of steps, each over all images."""
    lr: float = Field(default=1e-5, gt=0)
    """The learning rate of Adam with eps 1e-4; it decays to zero by a cosine."""
    weight: float | None = Field(default=None, ge=0)
    """Weight of the squared distance to the frozen projection, summed over entries; by default one over the shots."""


class ProLIP(Method[ImageStep]):
    """A method that fine-tunes the last projection of the vision tower, stored as `proj` `(d, e)`."""

    name = "prolip"
    title = "ProLIP (Fahes et al., 2024)"
    Config = ProLIPConfig
    example = {"views": 0, "epochs": 20}
    touches = frozenset({"vision"})
    logit_scale = SCALE
    takes_steps = False
    proj: Tensor

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        projection = backbone.tower("vision").projection
        if projection is None:
            raise AdaptError(
                "prolip trains the last projection of the vision tower, but the vision tower of "
                f"{backbone.describe()} has no projection: use another backbone or another method"
            )
        self.register_buffer("proj", projection.weight.T.float().clone())

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        return [Replace(None, "projection", Composed(self.proj.T, None))]

    def prepare(self, training: Training) -> None:
        views, device = self.config.views, self.proj.device
        read = training.features("train", views=views, unit=False, projected=False).to(device)
        rows = read.transpose(0, 1) if views else read[None]  # (views, n, d)
        labels = training.labels("train").to(device)
        with torch.no_grad():
            texts = training.classifier.class_features()
        losses = list(self.steps(rows, labels, texts))
        training.note(solver={"first_loss": losses[0], "last_loss": losses[-1]})

    def steps(self, rows: Tensor, labels: Tensor, texts: Tensor) -> Iterator[float]:
        """Train the projection on inputs `(v, n, d)`, v views of n images, and yield the cross-entropy of each step."""
        start, trained = self.proj.clone(), nn.Parameter(self.proj.clone())
        weight = len(texts) / rows.shape[1] if self.config.weight is None else self.config.weight
        optimizer = torch.optim.Adam([trained], lr=self.config.lr, eps=1e-4)
        with torch.inference_mode(False), torch.enable_grad():
            for epoch in range(self.config.epochs):
                decay = (1 + math.cos(math.pi * epoch / self.config.epochs)) / 2  # a cosine from 1 to 0
                optimizer.param_groups[0]["lr"] = decay * self.config.lr
                view = rows[(epoch + 1) % len(rows)]
                logits = SCALE * F.normalize(view.to(trained.dtype) @ trained, dim=-1) @ texts.to(trained.dtype).T
                loss = F.cross_entropy(logits, labels)
                penalised = loss + weight * (trained - start).square().sum()
                (trained.grad,) = torch.autograd.grad(penalised, [trained])
                optimizer.step()
                self.proj = trained.detach().clone()
                yield float(loss.detach())
