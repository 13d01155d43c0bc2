"""Whether a training step fits into memory, before anything runs, and how long all will take, once a few have."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from adapt.engine.budget import activation_bytes
from adapt.engine.memory import free_bytes, readable_bytes
from adapt.engine.watching import watched
from adapt.errors import AdaptError
from adapt.features import keeps_features
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.progress import readable_time
from adapt.training.batches import Batches, FeatureBatches
from adapt.training.settings import TrainSettings

logger = logging.getLogger("adapt")
LONG = 600.0  # seconds of a training that are worth a word
_WARM, _TIMED = 2, 3  # steps


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


class LengthOfTime:
    """Says after a few steps how long training will take here, where that is long, and what would make it shorter."""

    def __init__(self, model: Adapted[Any], batches: Batches, settings: TrainSettings, steps: int, done: int) -> None:
        self._left, self._advice = steps - done, _shorter(model, batches, settings)
        self._started, self._seen = time.monotonic(), 0

    def told(self) -> None:
        """Of a step; the first ones are slower, and do not count."""
        self._seen += 1
        if self._seen == _WARM:
            self._started = time.monotonic()
        if self._seen != _WARM + _TIMED:
            return
        each = (time.monotonic() - self._started) / _TIMED
        seconds = each * (self._left - self._seen)
        if seconds > LONG:
            logger.warning(
                "%s steps are left, of %.2g s each here: about %s. For less: %s",
                f"{self._left - self._seen:,}", each, readable_time(seconds), self._advice,
            )  # fmt: skip


def _shorter(model: Adapted[Any], batches: Batches, settings: TrainSettings) -> str:
    unit = "iterations" if settings.iterations else "epochs"
    advice = [f"--set train.{unit}={max(1, (settings.iterations or settings.epochs) // 10)}"]  # type: ignore[operator]
    if isinstance(batches, FeatureBatches):
        return advice[0]
    if keeps_features(model, cache=True) and settings.views is None:
        advice.append("--set train.views=10, which encodes ten views of each image once")
    return ", ".join([*advice, "fewer --shots, a smaller --backbone, or --device cuda where there is one"])


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
