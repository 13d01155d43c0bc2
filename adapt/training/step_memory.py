"""Whether a training step fits into memory, before anything runs.

What a step keeps for its backward pass is read off two images, and the classes, with whatever the method does to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.devices import keeping_rng
from adapt.engine.memory import free_bytes, readable_bytes
from adapt.engine.watching import watched
from adapt.errors import AdaptError
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.training.batches import Batches, BlockBatches, FeatureBatches
from adapt.training.loop import autocast
from adapt.training.settings import TrainSettings

_IMAGES = 2  # that it is read off: norms over a batch need two
_HELD = 1.25  # bytes that the allocator holds on to, for each that is kept; measured


def check_memory(model: Adapted, batches: Batches, settings: TrainSettings, processes: int = 1) -> int:
    """About how many bytes a step over images takes beside the model; 0 where features of them are known.

    Each of several `processes` has its share of the images.

    Raises AdaptError, with what would fit, where they exceed what is free.
    """
    if isinstance(batches, FeatureBatches) or not isinstance(model, AdaptedModel):
        return 0
    size, free = -(-settings.batch_size // processes), free_bytes(model.backbone.device)
    with autocast(model.backbone.device, settings.precision):
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
    backbone = model.backbone
    if not model.method.per_image:
        return kept_bytes(model, model.class_features)
    with torch.no_grad():
        features = torch.zeros(_IMAGES, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)
        tokens = model.image_tokens(_no_images(backbone)) if "tokens" in model.method.reads else None
    return kept_bytes(model, lambda: model.class_features(features, tokens)) // _IMAGES


def _of_an_image(model: AdaptedModel, block: int | None) -> tuple[int, int]:
    backbone, images = model.backbone, _no_images(model.backbone)
    working = 12 * images[0, 0].numel()  # three channels of fp32
    if "vision" not in backbone.towers:
        return 0, working
    tower = backbone.tower("vision")
    inner = max(projection.shape[0] for projection in tower.blocks[-1].projections.values())
    working += 4 * _tokens(model, images) * (8 * tower.width + 2 * inner)
    entered: Any = images if block is None else model.block_inputs(images, block)
    return kept_bytes(model, lambda: model.image_features(entered)) // _IMAGES, working


def _no_images(backbone: DualEncoder) -> Tensor:
    size = backbone.preprocess.size
    return torch.zeros(_IMAGES, 3, size, size, device=backbone.device, dtype=backbone.dtype)


def kept_bytes(model: AdaptedModel, compute: Callable[[], Any]) -> int:
    """What `compute()`, in training mode, keeps for its backward pass beside the tensors of the model itself."""
    held = (*model.backbone.model.parameters(), *model.backbone.model.buffers(), *model.method.state_dict().values())
    own = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with _left_as_it_was(model), keeping_rng(model.backbone.device):
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            compute()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@contextmanager
def _left_as_it_was(model: AdaptedModel) -> Iterator[None]:
    """Afterwards each module is in its mode again, and buffers have their values, such as those of a batch norm."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _tokens(model: AdaptedModel, images: Tensor) -> int:
    """How many tokens an image has in the vision tower: read off one pass."""
    backbone = model.backbone
    with watched(backbone.model, backbone.towers, ["vision.0"]) as seen, torch.inference_mode():
        backbone.encode_image(images)
    entered, _ = seen["vision.0"]
    return entered.shape[1]
