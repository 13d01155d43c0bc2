"""Whether a training step fits into memory, before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from adapt.engine.budget import activation_bytes
from adapt.engine.memory import free_bytes, readable_bytes
from adapt.engine.watching import watched
from adapt.errors import AdaptError
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.training.batches import Batches, FeatureBatches
from adapt.training.settings import TrainSettings


def check_memory(model: Adapted[Any], batches: Batches, settings: TrainSettings) -> int:
    """The estimated bytes of a step's vision activations; the text side keeps to a budget of its own.

    Raises AdaptError, with what would fit, where they exceed what is free.
    """
    if isinstance(batches, FeatureBatches) or not isinstance(model, AdaptedModel):
        return 0
    needed = vision_bytes(model, settings.batch_size)
    free = free_bytes(model.backbone.device)
    if needed > free:
        fitting = settings.batch_size * free // needed
        if fitting:
            advice = f"set train.batch_size to {fitting} and train.accumulate to {-(-settings.batch_size // fitting)}"
        else:
            advice = "not even one image fits: free some, take a smaller backbone"
        also = "" if model.checkpointing or "vision" not in model.method.touches else ", or set checkpointing: true"
        raise AdaptError(
            f"a step over {settings.batch_size} images needs about {readable_bytes(needed)} and {readable_bytes(free)} "
            f"are free: {advice}{also}"
        )
    return needed


def vision_bytes(model: AdaptedModel, batch_size: int) -> int:
    """An estimate of what one step keeps of the vision tower: all blocks where it is edited, one otherwise."""
    backbone = model.backbone
    image = 12 * backbone.preprocess.size**2  # three channels of fp32
    if "vision" not in backbone.towers:
        return batch_size * image
    tower = backbone.tower("vision")
    tokens = _tokens(model)
    every_block = "vision" in model.method.touches and not model.checkpointing
    return batch_size * (image + tokens * activation_bytes(tower, tokens, len(tower.blocks) if every_block else 1))


def _tokens(model: AdaptedModel) -> int:
    """How many tokens an image has in the vision tower: read off one pass."""
    backbone, size = model.backbone, model.backbone.preprocess.size
    image = torch.zeros(1, 3, size, size, device=backbone.device, dtype=backbone.dtype)
    with watched(backbone.model, backbone.towers, ["vision.0"]) as seen, torch.inference_mode():
        backbone.encode_image(image)
    entered, _ = seen["vision.0"]
    return entered.shape[1]
