"""Whether a training step fits into memory, before anything runs.

What a step keeps for its backward pass is read off one image, and the classes, with whatever the method does to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapt.engine.memory import free_bytes, readable_bytes
from adapt.engine.watching import watched
from adapt.errors import AdaptError
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.training.batches import Batches, BlockBatches, FeatureBatches
from adapt.training.settings import TrainSettings

_HELD = 1.25  # bytes that the allocator holds on to, for each that is kept; measured


def check_memory(model: Adapted[Any], batches: Batches, settings: TrainSettings) -> int:
    """About how many bytes a step over images takes beside the model; 0 where features of them are known.

    Raises AdaptError, with what would fit, where they exceed what is free.
    """
    if isinstance(batches, FeatureBatches) or not isinstance(model, AdaptedModel):
        return 0
    size, free = settings.batch_size, free_bytes(model.backbone.device)
    step = step_bytes(model, batches.block if isinstance(batches, BlockBatches) else None)
    needed = step.of(size)
    if needed > free:
        fitting = next((n for n in range(size - 1, 0, -1) if step.of(n) <= free), 0)
        if fitting:
            advice = f"set train.batch_size to {fitting} and train.accumulate to {-(-size // fitting)}"
        else:
            advice = "not even one image fits: free some, take a smaller backbone"
        also = "" if model.checkpointing or "vision" not in model.method.touches else ", or set checkpointing: true"
        raise AdaptError(
            f"a step over {size} images needs about {readable_bytes(needed)} and {readable_bytes(free)} "
            f"are free: {advice}{also}"
        )
    return needed


@dataclass(frozen=True)
class StepBytes:
    """About how many bytes a step takes.

    Where classes are encoded in parts, a part's own bytes keep to the model's `text_memory` and are not counted.
    """

    classes: int  # what the features of the classes keep
    kept: int  # what those of an image keep
    working: int  # what a block works with at once for an image, and the image itself
    by_image: bool = False  # whether each image has classes of its own

    def of(self, images: int) -> int:
        """Of a step over that many images."""
        classes = self.classes * (images if self.by_image else 1)
        return classes + images * int(_HELD * self.kept + self.working)


def step_bytes(model: AdaptedModel, block: int | None = None) -> StepBytes:
    """Of steps that begin at `block` of the vision tower."""
    return StepBytes(_of_classes(model), *_of_an_image(model, block), by_image=model.method.per_image)


def _of_classes(model: AdaptedModel) -> int:
    if model.text_path == "none":
        return 0
    features = torch.zeros(1, model.backbone.embed_dim, device=model.backbone.device, dtype=model.backbone.dtype)
    return kept_bytes(model, lambda: model.class_features(features))


def _of_an_image(model: AdaptedModel, block: int | None) -> tuple[int, int]:
    backbone, size = model.backbone, model.backbone.preprocess.size
    image = torch.zeros(1, 3, size, size, device=backbone.device, dtype=backbone.dtype)
    working = 12 * size**2  # three channels of fp32
    if "vision" not in backbone.towers:
        return 0, working
    tower = backbone.tower("vision")
    inner = tower.blocks[-1].projections["fc1"].shape[0]
    working += 4 * _tokens(model, image) * (8 * tower.width + 2 * inner)
    seen: Any = image if block is None else model.block_inputs(image, block)
    return kept_bytes(model, lambda: model.image_features(seen)), working


def kept_bytes(model: AdaptedModel, compute: Callable[[], Any]) -> int:
    """What `compute()`, in training mode, keeps for its backward pass beside the tensors of the model itself."""
    held = (*model.backbone.model.parameters(), *model.backbone.model.buffers(), *model.method.state_dict().values())
    own = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mode, devices = model.training, [] if model.backbone.device.type == "cpu" else [model.backbone.device]
    try:
        model.train()
        with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            compute()
    finally:
        model.train(mode)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def _tokens(model: AdaptedModel, image: Tensor) -> int:
    """How many tokens an image has in the vision tower: read off one pass."""
    backbone = model.backbone
    with watched(backbone.model, backbone.towers, ["vision.0"]) as seen, torch.inference_mode():
        backbone.encode_image(image)
    entered, _ = seen["vision.0"]
    return entered.shape[1]
