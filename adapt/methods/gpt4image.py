"""GPT4Image: a vision tower that learns labels, and what a multimodal model's descriptions of the images say.

Paper: Ding et al., GPT4Image: Can Large Pre-trained Models Help Vision Models on Perception Tasks?, 2023,
arXiv 2306.00693.
Our reading: no code was found, and the abstract alone was available. It says that a multimodal model describes all
training images, that a pre-trained encoder turns descriptions into text embeddings, and that image representations are
aligned with these while an image model learns its task.
Deviations:
* The vision tower learns by LoRA; the paper trains whole image models.
* The alignment is one minus the cosine between a text embedding and a linear map of the image feature. The map begins
  as the identity, as far as both have numbers, and is thrown away after training.

Descriptions are read in training alone, so that they may name the class.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.backbones.tower import TowerName
from adapt.common.errors import AdaptError, about
from adapt.methods.base import ImageStep, Terms, Training
from adapt.methods.base.method import LearnsAside
from adapt.methods.lora import LoRA, PlainLoRAConfig

logger = logging.getLogger("adapt")


class GPT4ImageConfig(PlainLoRAConfig):
    only = "vision"
    towers: tuple[TowerName, ...] = ("vision",)
    """The vision tower, which learns the descriptions."""
    describes: float = Field(default=1.0, gt=0)
    """The weight of the distance between images and their descriptions."""
    reader: str = Field(default="mini-clip", min_length=1)
    """The dual encoder whose text tower reads the descriptions, by a name that `adapt backbones` lists."""


class GPT4Image(LearnsAside, LoRA[ImageStep]):
    """LoRA of the vision tower, `vision.BLOCK.PROJECTION.lora_A` and `lora_B`.

    The map from image features to descriptions is not in adapters.
    """

    name = "gpt4image"
    title = "GPT4Image, our reading (Ding et al., 2023), by LoRA"
    serves = ("dual encoder", "vision encoder")
    Config = GPT4ImageConfig
    tasks = frozenset({"classes"})
    example = {"rank": 2}
    _read: dict[str, Tensor] = {}  # unit-length features `(d,)` of descriptions; none outside a run

    def prepare(self, training: Training) -> None:
        """Encode the descriptions of the training images by the reader.

        Raises AdaptError if no image has one, for a reader that reads no texts, and for a description too long for it.
        """
        items = training.items("train")
        described = [item for item in items if item.label.caption]
        if not described:
            raise AdaptError(
                "gpt4image learns from descriptions, but no training image has one: give a list with a column caption, "
                "such as `adapt data describe PHOTOS --labels` writes, or use the method lora"
            )
        if left := len(items) - len(described):
            logger.warning(
                "gpt4image: %d of %d images have no description, and teach their class alone", left, len(items)
            )
        with about(f"gpt4image: method.reader is {self.config.reader!r}"):
            reader = training.alone(self.config.reader).classifier
            reader.check_encodes_texts()
            texts = list(dict.fromkeys(item.label.caption for item in described))
            features = reader.text_features(texts).float()
        self._read = dict(zip(texts, features, strict=True))
        backbone = training.model.backbone
        assert isinstance(backbone, ImageEncoder)
        projection = nn.Linear(backbone.embed_dim, features.shape[-1], bias=False)
        nn.init.eye_(projection.weight)
        self.set_aside({"projection": projection}, backbone.device)

    def finish(self, training: Training) -> None:
        """Forget the descriptions."""
        self._read = {}

    def loss(self, step: ImageStep) -> Terms:
        terms = super().loss(step)
        places = [place for place, item in enumerate(step.items) if item.label.caption in self._read]
        if places:
            wanted = torch.stack([self._read[step.items[place].label.caption] for place in places])
            told = F.normalize(self.aside["projection"](step.features[places].float()), dim=-1)
            terms |= {"describes": self.config.describes * (1 - (told * wanted).sum(-1).mean())}
        return terms
