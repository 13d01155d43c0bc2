"""PromptKD: prompts in a small vision tower, and a projection, that learn a prompted teacher's answers without labels.

Paper: Li et al., PromptKD: Unsupervised Prompt Distillation for Vision-Language Models, CVPR 2024.
Reference: PromptKD `ec244f7`, `trainers/promptkd.py`, `clip/model.py`.
Deviations:
* The teacher is any adapter of a dual encoder, also of another method than PromptSRC, or a dual encoder with a
  hand-written prompt, and answers by its own logits.
* Teacher and student each get pixels as in their training; in the reference both get the same pixels.
* The last epoch is kept; the reference keeps the epoch that is best on test images of the base classes.
* Maps are linear layers, without the trailing dimensions of the reference's 1x1 convolutions.

Labels are never read. An adapter holds the teacher's class features, without which it could not answer, so that it
serves the classes that it was trained on, and needs no teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.preprocess import Repixelled
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, Terms, Training
from adapt.methods.base.method import no_prompts
from adapt.methods.base.space import Space
from adapt.methods.base.traits import LearnsUnlabelled, Projects, StandsAlone
from adapt.methods.ivlp import IVLP, IVLPConfig
from adapt.methods.prompt_src import divergence
from adapt.methods.zero_shot import Templates
from adapt.prompts import several


class PromptKDConfig(IVLPConfig):
    teacher: str = ""
    """The adapter to learn from, as a file, the folder of a run or a name on the hub; or a backbone, whose zero-shot
    answers are learned. Only training reads it."""
    template: Templates = "a photo of a {}."
    """The prompts of a teacher that is a backbone."""
    n_ctx_text: int = Field(default=0, ge=0, le=0)
    """The student's text tower is not used."""
    n_ctx_vision: int = Field(default=4, ge=1)
    """The number of learned tokens in the vision tower."""
    depth_vision: int | None = Field(default=9, ge=1)
    """Number of vision blocks, from the first, with learned tokens of their own; null: 9 of 12."""
    temperature: float = Field(default=1.0, gt=0)
    """The temperature of both answers in the loss."""
    weight: float = Field(default=1000.0, gt=0)
    """Weight of the divergence of the student's answers from the teacher's, a mean over images and classes."""
    size: int | None = Field(default=None, ge=1)
    """The number of values in a feature of the teacher; training sets it."""


class PromptKD(IVLP, Projects, StandsAlone, LearnsUnlabelled):
    """A student of a prompted teacher. `PromptKD(teacher)` trains `vision.I` `(k, d)` and the projection `conv1`.

    `teacher_text` `(n_classes, size)` are the teacher's class features.
    """

    name = "promptkd"
    title = "PromptKD (Li et al., CVPR 2024)"
    Config = PromptKDConfig
    serves = ("dual encoder",)
    reads = frozenset({"images"})
    published_share = 0.75
    weighs_classes = False
    learns_any_step = False
    per_class = True
    reads_labels = False
    prompts = no_prompts  # the teacher has the texts
    space: Space | None = None
    example = {"teacher": "mini-clip", "n_ctx_vision": 2, "depth_vision": 2, "size": 256}
    teacher_text: Tensor
    _teacher: Teacher | None = None

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        super().build(backbone, class_names)
        assert isinstance(backbone, DualEncoder)
        size = self.config.size or backbone.embed_dim
        layers = nn.Linear(backbone.embed_dim, size), nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, size)
        self.conv1 = nn.Sequential(*layers).to(backbone.device)
        self.register_buffer("teacher_text", torch.zeros(len(class_names), size, device=backbone.device))

    def project(self, features: Tensor) -> Tensor:
        projected: Tensor = self.conv1(features.to(self.teacher_text.dtype))
        return projected

    def prepare(self, training: Training) -> None:
        self._teacher = Teacher(self.config.teacher, several(self.config.template), training)
        text = self._teacher.class_features
        if self.config.size != text.shape[-1]:
            self.config = self.config.model_copy(update={"size": text.shape[-1]})
            training.restart()
        self.teacher_text.copy_(text)

    def finish(self, training: Training) -> None:
        self._teacher = None  # a trained student needs none

    def logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(self.teacher_text)

    def loss(self, step: ImageStep) -> Terms:
        assert self._teacher is not None
        taught = self._teacher.logits(step.images).float() / self.config.temperature
        own = step.logits.float() / self.config.temperature
        return {"distillation": self.config.weight * self.config.temperature**2 * divergence(own, taught)}


class Teacher:
    """A trained model with the student's classes, which reads the student's pixels."""

    def __init__(self, teacher: str, templates: Sequence[str], training: Training) -> None:
        """Read the teacher in an adapter, or a backbone with hand-written prompts `templates`.

        Raises AdaptError if no teacher is named, and for an adapter without class features.
        """
        if not teacher:
            raise AdaptError(
                "promptkd learns from another model: set method.teacher to an adapter, or a backbone such as mini-clip"
            )
        self.model = training.teacher(teacher, templates)
        self._pixels = Repixelled(training.model.backbone.preprocess, self.model.backbone.preprocess)
        with torch.no_grad():
            self.class_features: Tensor = F.normalize(self.model.class_features(), dim=-1)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Return the teacher's logits `(b, n_classes)` for the student's pixels `(b, 3, h, w)`."""
        return self.model(self._pixels(pixels))
