"""VL2V-ADiP: a dual encoder is distilled into a separate image model (align, distil, predict).

Paper: Addepalli et al., Leveraging Vision-Language Models for Improving Domain Generalization in Image Classification,
CVPR 2024 (VL2V-ADiP).
Reference: VL2V-ADiP `d442aae`, `domainbed/algorithms/distill_clip.py`, its stages 1 and 2.
Deviations:
* Student and teacher each get pixels normalised as in their training; in the reference both get the same pixels.
* The loss is the reference's plus one, so that it is never negative.
* Stage 2 continues from the end of stage 1, which takes as many steps; the reference continues from the checkpoint that
  was best on validation images. Weight averaging is set by `train.average`, and is not part of the method.
* CutMix, which no published run uses, is left out.

The adapter holds the complete student, and the backbone's text tower encodes the classes. VL2V-SD, the white-box
variant, is `vl2v_sd`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.preprocess import Preprocess, Repixelled
from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import one_line
from adapt.methods.base import ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.traits import EncodesImages
from adapt.methods.zero_shot import Template


class VL2VConfig(MethodConfig):
    student: str = "vit_small_patch16_224.augreg_in21k"
    """The name of a timm model."""
    pretrained: bool = True
    """Whether training starts from timm's weights, which may be downloaded, or from random weights."""
    image_share: float = Field(default=0.5, ge=0, le=1)
    """The share of the teacher's image features in the loss; the rest is that of the classes' text features."""
    template: Template | tuple[Template, ...] = "a photo of a {}"
    """One template, or several whose features are averaged."""


class VL2V(Method[ImageStep], EncodesImages):
    """A distillation of the backbone into a timm model, in which `proj_lyr` `(e, d)` trains before `student`."""

    name = "vl2v"
    title = "VL2V-ADiP (Addepalli et al., CVPR 2024)"
    Config = VL2VConfig
    reads = frozenset({"images"})
    touches = frozenset({"vision"})  # features come from another model
    weighs_classes = False
    example = {"student": "test_vit", "pretrained": False}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        import timm
        from timm.data.config import resolve_model_data_config

        known = timm.list_models(pretrained=False)
        if self.config.student.partition(".")[0] not in known:
            raise AdaptError(f"vl2v: timm has no model {self.config.student!r}; {nearest(self.config.student, known)}")
        student: Any = timm.create_model(self.config.student, num_classes=0)
        data = resolve_model_data_config(student)
        wanted = Preprocess(data["input_size"][-1], data["mean"], data["std"])
        self._pixels = Repixelled(backbone.preprocess, wanted)
        self.student = student.to(backbone.device)
        self.proj_lyr = nn.Linear(student.num_features, backbone.embed_dim).to(backbone.device)

    def train(self, mode: bool = True) -> VL2V:
        super().train(mode)
        for module in self.modules():  # in training mode, statistics of a few images would replace the stored ones
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def image_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.proj_lyr(self.student(self._pixels(images.to(self.proj_lyr.weight.dtype))))
        return features

    def prepare(self, training: Training) -> None:
        """Run stage 1 (alignment), which trains the projection while the student is frozen."""
        if training.resumed:
            return
        if self.config.pretrained and not training.started:
            self.student.load_state_dict(_published_weights(self.config.student))
        self.student.requires_grad_(False)
        training.seconds += training.train("aligning", parameters=self.proj_lyr.parameters())
        self.student.requires_grad_(True)

    def trains(self) -> Iterable[nn.Parameter]:
        """Return the student's parameters, which are trained in stage 2 (distillation)."""
        return self.student.parameters()

    def loss(self, step: ImageStep) -> Terms:
        return drawn_to(step, self.config.image_share)


def drawn_to(step: ImageStep, image_share: float) -> Terms:
    """Return two weighted loss terms: one minus the mean cosine to frozen image features and to class text features."""
    features = step.features.float()
    to_images = (features * step.frozen_features.float()).sum(-1)
    to_texts = (features * step.class_features.float()[step.labels]).sum(-1)
    return {"images": image_share * (1 - to_images.mean()), "texts": (1 - image_share) * (1 - to_texts.mean())}


def _published_weights(student: str) -> dict[str, Tensor]:
    """Return the pre-trained weights of a timm model. Raises AdaptError if the weights cannot be loaded."""
    import timm

    try:
        weights: dict[str, Tensor] = timm.create_model(student, num_classes=0, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise AdaptError(
            f"vl2v: timm's weights of {student} cannot be loaded ({one_line(error)}): connect to the network once to "
            "download the weights, or set method.pretrained to false"
        ) from error
    return weights
