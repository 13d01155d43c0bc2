"""MMRL: tokens of a representation space that both towers share enter their upper blocks and give a second answer.

Paper: Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025.
Reference: MMRL `27d8821`, `trainers/mmrl.py`, `clip/model_mmrl.py`.
Deviations:
* Both features answer if all asked classes were trained, and the class token's alone in all other cases. The reference
  goes by its test configuration, and across data sets by the name "ImageNet".
* `pull` has one default, the published weight for ImageNet; the reference has a weight for each data set.
* Tokens enter at the same share of each tower's height if no block is given; the reference numbers blocks of twelve.
* Parameters are fp32 whatever the backbone's precision, and are named without `representation_learner.` and
  `image_encoder.` in front.
* The library's own text forward, without the fast path, computes no more tokens than before, and refuses a prompt that
  leaves no room for the learned ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Tower
from adapt.edits import Edit, Tokens
from adapt.methods.base import Context, ImageStep, Method, Terms, Training, total
from adapt.methods.base.places import check_depth
from adapt.methods.base.traits import StandsAlone, configure
from adapt.methods.zero_shot import TemplateConfig

_TOWERS = {"text": "compound_rep_tokens_r2tproj", "vision": "compound_rep_tokens_r2vproj"}  # names in the reference


class MMRLConfig(TemplateConfig):
    tokens: int = Field(default=5, ge=1)
    """The number of tokens in the shared space."""
    width: int = Field(default=512, ge=1)
    """The width of the shared space."""
    first_block: int | None = Field(default=None, ge=1)
    """The block of both towers, counted from 1, at which tokens enter; null: halfway up each, 6 of 12 as published."""
    weight: float = Field(default=0.7, ge=0, le=1)
    """The share of the class token's feature in the loss, and in answers about trained classes."""
    pull: float = Field(default=0.5, ge=0)
    """Weight of the distances of image and class features to the frozen ones, one minus the mean cosine."""
    logit_scale: float | None = Field(default=100.0, gt=0)
    """A constant scale of the logits, as published; null means the backbone's own."""
    classes: tuple[str, ...] | None = None
    """The names of the trained classes, about which both features answer; training sets them."""
    set_by_training: ClassVar[frozenset[str]] = frozenset({"classes"})


class MMRL(Method[ImageStep], StandsAlone):
    """Shared tokens in both towers. `MMRL()` trains `compound_rep_tokens`, their maps to the blocks, and `proj_rep`.

    `proj_rep` `(d, e)` projects the mean output of the vision tower's tokens to a second feature of each image.
    """

    name = "mmrl"
    title = "MMRL (Guo and Gu, CVPR 2025)"
    Config = MMRLConfig
    learns_any_step = True
    example = {"tokens": 3, "width": 16}
    touches = frozenset({"text", "vision"})

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        if self.config.classes is None:  # or else it is a saved adapter, perhaps with other names
            configure(self, {"classes": tuple(class_names)})
        self.compound_rep_tokens = nn.Parameter(torch.empty(self.config.tokens, self.config.width).normal_(std=0.02))
        for name in _TOWERS:
            self._build_maps(backbone.tower(name))
        self._build_projection(backbone)
        self.to(backbone.device)

    def prepare(self, training: Training) -> None:
        configure(self, {"classes": training.model.class_names})

    def _upper(self, tower: Tower) -> range:
        """Return the indices of the blocks from the one on at which tokens enter."""
        first = self.config.first_block or max(1, len(tower.blocks) // 2)
        check_depth(tower, first, self.name, "first_block")
        return range(first - 1, len(tower.blocks))

    def _build_maps(self, tower: Tower) -> None:
        """Allocate the maps from the shared space to the upper blocks of `tower`."""
        maps = nn.ModuleList(nn.Linear(self.config.width, tower.width) for _ in self._upper(tower))
        setattr(self, _TOWERS[tower.name], maps)

    def _build_projection(self, backbone: Backbone) -> None:
        """Allocate the projection of the tokens' outputs."""
        width, size = backbone.tower("vision").width, backbone.embed_dim  # type: ignore[attr-defined]
        self.proj_rep = nn.Parameter(torch.empty(width, size).normal_(std=width**-0.5))

    def _values(self, tower: str) -> Iterable[Tensor]:
        """Return the tokens `(k, d)` of each upper block of a tower."""
        return [each(self.compound_rep_tokens) for each in getattr(self, _TOWERS[tower])]

    def _projection(self, step: ImageStep) -> Tensor:
        """Return the projection `(d, e)` of the tokens' outputs."""
        return self.proj_rep

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        entering, *replacing = zip(self._upper(tower), self._values(tower.name), strict=True)
        first, values = entering
        share = getattr(self.config, "share", 1.0)  # of a block's own tokens, which MMRL++ blends with earlier ones
        return [
            Tokens(values, first, enters=True),
            *(Tokens(values, block, share=share) for block, values in replacing),
        ]

    def logits(self, step: ImageStep) -> Tensor:
        if not set(step.model.class_names).issubset(self.config.classes):
            return step.cosine_logits(step.class_features)
        of_tokens, of_class_token = self._both(step)
        return self.config.weight * of_class_token + (1 - self.config.weight) * of_tokens

    def _both(self, step: ImageStep) -> tuple[Tensor, Tensor]:
        """Return logits `(b, n)` by the learned tokens, and by the class token."""
        mean = step.learned_outputs.mean(1)  # before features, which the same pass computes
        projection = self._projection(step)
        features = F.normalize(mean.to(projection.dtype) @ projection, dim=-1)
        return step.cosine_logits(step.class_features, features), step.cosine_logits(step.class_features)

    def loss(self, step: ImageStep) -> Terms:
        of_tokens, of_class_token = self._both(step)
        known = step.frozen_class_features([self.config.template])
        weight, pull = self.config.weight, self.config.pull
        return {
            "class_token": weight * total(step.task_loss(of_class_token)),
            "tokens": (1 - weight) * total(step.task_loss(of_tokens)),
            "image": pull * (1 - F.cosine_similarity(step.features, step.frozen_features).mean()),
            "text": pull * (1 - F.cosine_similarity(step.class_features, known).mean()),
        }
