"""Dual encoders with a method, which classify images by class names or by a trained head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.devices import moved
from adapt.edits import Edit, Replace
from adapt.engine import values, vision
from adapt.engine.watching import watched
from adapt.errors import AdaptError
from adapt.methods.base import BlockInputs, Context, Encoded, ImageStep, Method, PairStep
from adapt.methods.base.traits import DrawsMaps, EncodesImages, Grades, PoolsPairs, normal_label, trait
from adapt.models.base import in_one_mode
from adapt.models.explanation import Explanation, explained
from adapt.models.prediction import Prediction, Wanted, finite, predictions
from adapt.models.text_side import TextSide
from adapt.prompts import check_class_names


class AdaptedModel(TextSide):
    """An adapted dual encoder, which classifies images by class names or by a trained head."""

    def __init__(
        self,
        backbone: DualEncoder,
        method: Method,
        class_names: Sequence[str],
        fast: bool | None,
        *,
        checkpointing: bool = False,
        text_memory: int | None = None,
    ) -> None:
        super().__init__(backbone, method, class_names, fast, checkpointing=checkpointing, text_memory=text_memory)
        self.vision_path = "plain" if _against_fast_vision(backbone, fast) else "fast"

    @property
    def classifies(self) -> bool:
        return True

    @property
    def answers_questions(self) -> bool:
        return False

    @in_one_mode
    def forward(self, images: Tensor | BlockInputs) -> Tensor:
        """Return logits `(b, n_classes)` for images `(b, 3, h, w)`, or for several views of each `(b, v, 3, h, w)`."""
        return self.answers.of(ImageStep(self, images))

    @in_one_mode
    def logits(self, image_features: Tensor, views: Tensor | None = None) -> Tensor:
        """Return logits `(b, n_classes)` for unit-length features `(b, e)` of images, and `(b, v, e)` of views."""
        return self.answers.of(ImageStep(self, Encoded(image_features, views)))

    def own_logits(self, step: ImageStep) -> Tensor:
        return step.cosine_logits(step.text_features if isinstance(step, PairStep) else step.class_features)

    def step(self, inputs: Any, labels: Tensor | None = None) -> ImageStep:
        return (PairStep if isinstance(inputs, list) else ImageStep)(self, inputs, labels)

    @in_one_mode
    def image_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)`, with `unit` of unit length, else as the tower outputs."""
        encoder = trait(self.method, EncodesImages)
        if encoder is None or isinstance(images, BlockInputs):
            features = self._image_features(images, self._edits("vision", Context()))
        else:
            features = encoder.image_features(images)
        features = self._projected(features, unit=False)
        return F.normalize(features, dim=-1) if unit else features

    def pair_features(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return unit-length features `(b, e)` of image-text pairs, from unit-length ones of images and of texts."""
        text_features = text_features.to(features)
        pools = trait(self.method, PoolsPairs)
        pooled = (features + text_features) / 2 if pools is None else pools.pool(features, text_features)
        return F.normalize(pooled, dim=-1)

    def read_features(self, images: Tensor, unit: bool = True) -> Tensor:
        """Return the input `(b, d)` of the unedited vision tower's last projection for images, if `unit` normalised.

        Raises AdaptError if the tower has no such projection.
        """
        features = self._image_features(images, [Replace(None, "projection", nn.Identity())])
        return F.normalize(features, dim=-1) if unit else features

    def backbone_features(self, images: Tensor | BlockInputs) -> Tensor:
        """Return unit-length features `(b, e)` of images by the unedited backbone."""
        return F.normalize(self._image_features(images, []), dim=-1)

    def frozen_blocks(self, images: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the inputs and outputs `(b, l, d)` of vision blocks, such as vision.3, by the unedited backbone."""
        backbone = self.backbone
        with watched(backbone.model, backbone.towers, names) as pairs, torch.no_grad():
            self.backbone_features(images)
        return pairs

    @torch.no_grad()
    def local_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(b, rows, columns, e)` of images' patches, and unit-length ones `(b, e)` of the images.

        They come from the unedited backbone in one pass: see `adapt.engine.values`. Those of patches are not
        normalised. Raises AdaptError if the backbone has no features of patches.
        """
        patches, features = values.local_features(self.backbone, images)
        return patches, F.normalize(features, dim=-1)

    def image_tokens(self, images: Tensor) -> Tensor:
        """Return the output `(b, l, d)` of the last vision block for all tokens, by the unedited backbone."""
        last = f"vision.{len(self.backbone.tower('vision').blocks) - 1}"
        return self.frozen_blocks(images, [last])[last][1]

    @property
    def unedited_blocks(self) -> int:
        """The number of vision blocks, from the first, that the method leaves unchanged.

        0 if only the library's own forward serves the tower.
        """
        if not self._fast_on_images:
            return 0
        return vision.first_edited(self.backbone.tower("vision"), self._edits("vision", Context()))

    def block_inputs(self, images: Tensor | BlockInputs, block: int) -> BlockInputs:
        """Return the tokens at the input of a vision block, from images `(b, 3, h, w)` or tokens at an earlier block.

        They come from the unedited backbone. Raises AdaptError if the fast path cannot be used.
        """
        self._check_begun()
        if isinstance(images, BlockInputs):
            return BlockInputs(block, vision.block_inputs(self.backbone, block, images.tokens, images.block))
        pixels = moved(images, self.backbone.device).to(self.backbone.dtype)
        return BlockInputs(block, vision.block_inputs(self.backbone, block, pixels))

    @property
    def _fast_on_images(self) -> bool:
        return self.vision_path == "fast" and vision.reason_against(self.backbone) is None

    def _check_begun(self) -> None:
        if not self._fast_on_images:
            reason = vision.reason_against(self.backbone) or "the fast path is switched off"
            raise AdaptError(
                f"block inputs need the fast path of the vision tower: {reason}. Give the model the images"
            )

    def _image_features(self, images: Tensor | BlockInputs, edits: Sequence[Edit]) -> Tensor:
        backbone, checkpointing = self.backbone, self.checkpointing and bool(edits)
        if isinstance(images, BlockInputs):
            self._check_begun()
            tokens = moved(images.tokens, backbone.device)
            return vision.encode_from(backbone, images.block, tokens, edits, checkpointing)
        images = moved(images, backbone.device).to(backbone.dtype)
        if self._fast_on_images:
            return vision.encode(backbone, images, edits, checkpointing)
        return self._through({"vision": edits}, lambda: backbone.encode_image(images))

    def under(self, method: Method) -> AdaptedModel:
        """Return a model with the same backbone and texts, and another method of the same class, such as a copy."""
        other = copy(self)
        other._modules = self._modules | {"method": method}
        return other

    def with_classes(self, class_names: Sequence[str]) -> AdaptedModel:
        """Return a model for other class names, with the same method, whose tensors are shared.

        Raises AdaptError if a tensor belongs to one class.
        """
        names = check_class_names(class_names)
        if self.method.per_class and names != self.class_names:
            raise AdaptError(
                f"this {self.method.name} learned tensors for each of its {len(self.class_names)} classes "
                "and cannot serve other class names; train on the new classes, or use a method that shares its tensors"
            )
        other = AdaptedModel(
            self.backbone, self.method, names, self.fast, checkpointing=self.checkpointing, text_memory=self.text_memory
        )
        other.training, other.metadata, other.answers = self.training, dict(self.metadata), self.answers
        return other

    def probabilities(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return the probabilities `(n, n_classes)` of all classes for images as `predict` takes them, on the CPU.

        Classes are in the model's order. Raises AdaptError as `predict` does.
        """
        self._check_classes()
        logits = self._of_batches(images, batch_size, urls, lambda model, pixels: finite(model(pixels)).float().cpu())
        return self.answers.probabilities(torch.cat([torch.empty(0, len(self.class_names)), *logits]))

    def anomaly_maps(self, images: object, batch_size: int = 64, *, urls: bool = False) -> Tensor:
        """Return the anomaly score of each pixel, from 0 to 1: `(n, h, w)` on the CPU, for images of `predict`.

        Maps have the size of the backbone's input, and cover the part of an image that it reads. Raises AdaptError as
        `predict` does, for a method that draws no maps, and for a backbone without features of patches.
        """
        normal_label(self.method, self.class_names)  # before any work
        maps = list(
            self._of_batches(images, batch_size, urls, lambda model, pixels: model._maps(ImageStep(model, pixels)))
        )
        return torch.cat(maps) if maps else torch.empty(0, 1, 1)

    def predict_maps(
        self, images: object, batch_size: int = 64, *, urls: bool = False
    ) -> Iterator[tuple[Prediction, Tensor]]:
        """Yield each image's prediction, as `predict_stream` does, with its anomaly map `(h, w)`, in one pass."""
        for logits, maps in self._of_batches(images, batch_size, urls, lambda model, x: model.logits_and_maps(x)):
            batch = predictions(logits, self.class_names, Wanted(), self.answers, numbers=self.grades(logits))
            yield from zip(batch, maps, strict=True)

    def logits_and_maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(b, n_classes)` of images `(b, 3, h, w)`, and their anomaly maps `(b, h, w)` on the CPU."""
        step = ImageStep(self, pixels)
        maps = self._maps(step)  # first, because the pass for features of patches also gives those of images
        return self.answers.of(step), maps

    def _maps(self, step: ImageStep) -> Tensor:
        draws = trait(self.method, DrawsMaps)
        assert draws is not None
        return draws.anomalies(step).float().cpu()

    def grades(self, logits: Tensor) -> Tensor | None:
        """Return the numbers `(b,)` that logits stand for, such as quality scores; None if the method predicts none."""
        grading = trait(self.method, Grades)
        return None if grading is None else grading.score(logits)

    def explain(self, images: object, top_k: int = 2, batch_size: int = 64) -> list[Explanation]:
        """Return predictions for images as `predict` takes them, with their cosines to descriptors of the classes.

        The classes are the `top_k` most probable. Raises AdaptError if the method does not decide by descriptors.
        """
        return list(explained(self, images, Wanted(top_k), batch_size))

    def _predictions(self, pixels: Tensor | BlockInputs, wanted: Wanted) -> Iterator[Prediction]:
        if wanted.question is not None:
            raise AdaptError(
                f"{self.backbone.describe()} classifies images and cannot answer a question: leave question out"
            )
        self._check_classes()
        logits, features = (self(pixels), None) if not wanted.features else self._with_features(pixels)
        return predictions(logits, self.class_names, wanted, self.answers, features, self.grades(logits))

    def _with_features(self, pixels: Tensor | BlockInputs) -> tuple[Tensor, Tensor]:
        step = ImageStep(self, pixels)
        return self.answers.of(step), step.features

    def _check_classes(self) -> None:
        if not self.class_names:
            raise AdaptError(
                f"this {self.method.name} learned from pairs and has no class names: give them with --classes, or with "
                "class_names of adapt.load"
            )


def _against_fast_vision(backbone: DualEncoder, fast: bool | None) -> str | None:
    """Return the reason why the fast path cannot encode images, or None if it can."""
    reason = "the fast path is switched off" if fast is False else vision.reason_against(backbone)
    if fast is True and reason is not None and "vision" in backbone.towers:
        raise AdaptError(f"fast=True, but the vision tower of {backbone.describe()} cannot take it: {reason}")
    return reason
