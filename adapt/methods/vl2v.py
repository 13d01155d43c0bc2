"""A small image model of its own learns to see as a dual encoder does: align, distil, predict.

Paper: Addepalli et al., Leveraging Vision-Language Models for Improving Domain Generalization in Image Classification,
CVPR 2024 (VL2V-ADiP).
Reference: VL2V-ADiP `d442aae`, `domainbed/algorithms/distill_clip.py`, its stages 1 and 2.
Deviations:
* Student and teacher each get pixels normalised as they were trained; the reference gives both the same.
* The loss is the reference's plus one, so that it is never negative.
* Stage 2 goes on from the end of stage 1, which takes as many steps; the reference takes up the checkpoint that was
  best on validation images. Averages of weights are `train.average`, and no part of it.
* Its CutMix, which no published run has, is left out.

The adapter holds the whole student, and the backbone's text tower gives it the classes. VL2V-SD, the white box, is
`vl2v_sd`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess
from adapt.errors import AdaptError, nearest
from adapt.methods.base import ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.traits import EncodesImages
from adapt.methods.zero_shot import Template
from adapt.shown import one_line


class VL2VConfig(MethodConfig):
    student: str = "vit_small_patch16_224.augreg_in21k"
    """A model of timm, by its name."""
    pretrained: bool = True
    """Whether training starts from timm's weights, which it may have to download, or from random ones."""
    image_share: float = Field(default=0.5, ge=0, le=1)
    """Of the loss: what is drawn to the teacher's image feature, the rest being drawn to the class's text."""
    template: Template | tuple[Template, ...] = "a photo of a {}"


class VL2V(Method[ImageStep], EncodesImages):
    """`VL2V(student)` trains `proj_lyr` `(e, d)`, then, with that fixed, `student`, whose features are `(b, d)`."""

    name = "vl2v"
    title = "VL2V-ADiP (Addepalli et al., CVPR 2024)"
    Config = VL2VConfig
    reads = frozenset({"images"})
    touches = frozenset({"vision"})  # whose features are another model's
    weighs_classes = False
    example = {"student": "test_vit", "pretrained": False}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        import timm
        from timm.data.config import resolve_model_data_config

        known = timm.list_models(pretrained=False)
        if self.config.student.partition(".")[0] not in known:
            raise AdaptError(f"vl2v: timm has no model {self.config.student!r}; {nearest(self.config.student, known)}")
        student: Any = timm.create_model(self.config.student, num_classes=0)
        seen = resolve_model_data_config(student)
        self._pixels = _Pixels(backbone.preprocess, seen["input_size"][-1], seen["mean"], seen["std"])
        self.student = student.to(backbone.device)
        self.proj_lyr = nn.Linear(student.num_features, backbone.embed_dim).to(backbone.device)

    def train(self, mode: bool = True) -> VL2V:
        super().train(mode)
        for module in self.modules():  # statistics of a few images would take the place of those it was trained with
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def image_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.proj_lyr(self.student(self._pixels(images.to(self.proj_lyr.weight.dtype))))
        return features

    def prepare(self, training: Training) -> None:
        """Stage 1, alignment: the projection learns, and the student is what it was."""
        if training.resumed:
            return
        if self.config.pretrained and not training.started:
            self.student.load_state_dict(_published_weights(self.config.student))
        self.student.requires_grad_(False)
        training.seconds += training.train("aligning", parameters=self.proj_lyr.parameters())
        self.student.requires_grad_(True)

    def trains(self) -> Iterable[nn.Parameter]:
        """Those of stage 2, distillation."""
        return self.student.parameters()

    def loss(self, step: ImageStep) -> Terms:
        return drawn_to(step, self.config.image_share)


def drawn_to(step: ImageStep, image_share: float) -> Terms:
    """How far features are from the teacher's of their image, and of their class, as one minus the mean cosine."""
    features = step.features.float()
    to_images = (features * step.frozen_features.float()).sum(-1)
    to_texts = (features * step.class_features.float()[step.labels]).sum(-1)
    return {"images": image_share * (1 - to_images.mean()), "texts": (1 - image_share) * (1 - to_texts.mean())}


class _Pixels:
    """Pixels `(b, 3, h, w)` that a backbone reads, as a student of another size and normalisation reads them."""

    def __init__(self, given: Preprocess, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._size = size
        scale = [was / wanted for was, wanted in zip(given.std, std, strict=True)]
        shift = [(was - wanted) / by for was, wanted, by in zip(given.mean, mean, std, strict=True)]
        self._scale, self._shift = (torch.tensor(values)[:, None, None] for values in (scale, shift))

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self._size:
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        return pixels * self._scale.to(pixels) + self._shift.to(pixels)


def _published_weights(student: str) -> dict[str, Tensor]:
    """timm's for this model. AdaptError where they cannot be had."""
    import timm

    try:
        weights: dict[str, Tensor] = timm.create_model(student, num_classes=0, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise AdaptError(
            f"vl2v: timm's weights of {student} cannot be had: {one_line(error)}. Connect once to "
            "download them, or set method.pretrained to false"
        ) from error
    return weights
