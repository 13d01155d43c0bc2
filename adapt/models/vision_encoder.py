"""Backbones of images alone with a method, which classify images by the training images of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.vision_encoder import CosineClassifier, VisionEncoder
from adapt.common.errors import AdaptError
from adapt.data.decoding.images import image_sizes
from adapt.methods.base.traits import DrawsMaps, has_trait
from adapt.models.base import in_one_mode
from adapt.models.building import add_classifier, trains_classifier
from adapt.models.class_texts import PromptAverage
from adapt.models.image_model import ImageModel
from adapt.prompts import Texts, check_class_names

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.methods.base.training import Training


class VisionModel(ImageModel[VisionEncoder]):
    """An adapted backbone of images alone.

    The mean feature of a class's training images stands where a dual encoder has the feature of the class name. These
    means belong to the method, as `classifier`; they are trained with a method that has no logits of its own.
    """

    baseline = "nearest mean"

    @property
    def has_baseline(self) -> bool:
        return not has_trait(self.method, DrawsMaps)  # whose training images may all be normal

    @property
    def needs_every_class(self) -> bool:
        return self._classifier is not None or self.method.needs_every_class

    @property
    def _classifier(self) -> CosineClassifier | None:
        """The classifier by class vectors that the model gave its method; None if the method has one of its own."""
        classifier = getattr(self.method, "classifier", None)
        return classifier if isinstance(classifier, CosineClassifier) else None

    def check_items(self, items: Sequence[Item]) -> None:
        super().check_items(items)
        for item in items if self.backbone.as_decoded else ():
            for size in image_sizes(item):
                self.backbone.check_size(size, item.name)

    def start_anew(self) -> None:
        super().start_anew()
        add_classifier(self.backbone, self.method, len(self.class_names))

    def begin(self, training: Training) -> None:
        classifier = self._classifier
        if classifier is None or (training.started and trains_classifier(self.method)):
            return
        own = training.alone() if "vision" in self.method.touches else training
        features, shares = own.features("train").double(), training.shares("train")
        classifier.set(F.normalize(shares.T @ features, dim=-1))

    @in_one_mode
    def class_features(self, image_features: Tensor | None = None, image_tokens: Tensor | None = None) -> Tensor:
        if self._classifier is None:
            raise AdaptError(f"{self.method.name} has a classifier of its own, and therefore no class features")
        features: Tensor = self._classifier()
        return features

    def frozen_class_features(self, templates: Texts, average: PromptAverage = "unit") -> Tensor:
        return self.class_features().detach()

    def with_classes(self, class_names: Sequence[str]) -> Self:
        if (names := check_class_names(class_names)) != self.class_names:
            raise AdaptError(
                f"{self.backbone.describe()} knows classes by their training images, so that a model of the "
                f"{len(self.class_names)} trained classes cannot serve other names: train on images of the new classes"
            )
        return self._for(names)
