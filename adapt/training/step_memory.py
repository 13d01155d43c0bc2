"""An estimate of the memory of a training step, before training starts.

What a step keeps for its backward pass is measured on two images and on the classes, under the method's edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.common.devices import free_bytes, keeping_rng
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes
from adapt.data.bags import largest
from adapt.engine.watching import watched
from adapt.models.base import Adapted, is_native
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import Batches, BlockBatches, KnownBatches
from adapt.training.loop import autocast

if TYPE_CHECKING:
    from adapt.training.chat_memory import ChatBytes

_IMAGES = 2  # images to measure on: norms over a batch need two
_HELD = 1.25  # bytes that the allocator reserves for each byte that is kept, as measured


def check_memory(model: Adapted, batches: Batches, settings: TrainSettings, processes: int = 1) -> int:
    """Return the estimated memory of a training step in bytes, without the model, or 0 if steps read features.

    Each of the `processes` encodes a fraction of the images. Raises AdaptError, which suggests a batch size that fits,
    if the step needs more than the free memory.
    """
    step: StepBytes | ChatBytes
    if is_native(model):
        from adapt.training.chat_memory import chat_bytes

        step = chat_bytes(model, batches.items, settings.precision)
    else:
        block = batches.block if isinstance(batches, BlockBatches) else None
        if not isinstance(model, ImageModel) or (isinstance(batches, KnownBatches) and block is None):
            return 0
        with autocast(model.backbone.device, settings.precision):
            step = step_bytes(model, block)
    size, free = -(-min(settings.batch_size, len(batches.items)) // processes), free_bytes(model.backbone.device)
    each = largest(batches.items)
    needed = step.of(size * each)
    if needed > free:
        fitting = next((n for n in range(size - 1, 0, -1) if step.of(n * each) <= free), 0)
        if fitting:
            accumulate = -(-size // fitting) * settings.accumulate
            advice = f"set train.batch_size to {fitting * processes} and train.accumulate to {accumulate}"
        else:
            advice = "not even one fits, so free memory or take a smaller backbone"
        recomputed = is_native(model) or "vision" in model.method.touches
        more = ", or set checkpointing: true" if recomputed and not model.checkpointing else ""
        raise AdaptError(
            f"a training step over {size} {step.noun} needs about {readable_bytes(needed)}, but only "
            f"{readable_bytes(free)} of memory are free: {advice}{more}"
        )
    return needed


@dataclass(frozen=True)
class StepBytes:
    """The approximate memory of a training step in bytes.

    If classes are encoded in chunks, the temporary memory of a chunk (at most `text_memory`) is not counted.
    """

    noun: ClassVar = "images"
    classes: int  # kept for the backward pass of the class features
    kept: int  # kept for the backward pass of an image's features
    working: int  # working memory of one block for an image, and the image itself
    by_image: bool = False  # whether each image has its own class features

    def of(self, images: int) -> int:
        """Return the memory in bytes of a training step over the given number of images."""
        classes = self.classes * (images if self.by_image else 1)
        return classes + images * int(_HELD * self.kept + self.working)


def step_bytes(model: ImageModel, block: int | None = None) -> StepBytes:
    """Return the memory of a training step that starts at the vision block `block`, or at images if `block` is None."""
    return StepBytes(_of_classes(model), *_of_an_image(model, block), by_image=model.method.per_image)


def _of_classes(model: ImageModel) -> int:
    if model.text_path == "none":
        return 0
    backbone = model.backbone
    if not model.method.per_image:
        return kept_bytes(model, model.class_features)
    with torch.no_grad():
        features = torch.zeros(_IMAGES, backbone.embed_dim, device=backbone.device, dtype=backbone.dtype)
        tokens = model.image_tokens(_no_images(backbone)) if "tokens" in model.method.reads else None
    return kept_bytes(model, lambda: model.class_features(features, tokens)) // _IMAGES


def _of_an_image(model: ImageModel, block: int | None) -> tuple[int, int]:
    backbone, images = model.backbone, _no_images(model.backbone)
    working = 12 * images[0, 0].numel()  # three channels of fp32
    if "vision" not in backbone.towers:
        return 0, working
    tower = backbone.tower("vision")
    inner = max(projection.shape[0] for projection in tower.blocks[-1].projections.values())
    working += 4 * _tokens(model, images) * (8 * tower.width + 2 * inner)
    inputs = images if block is None else model.block_inputs(images, block)
    return kept_bytes(model, lambda: model.image_features(inputs)) // _IMAGES, working


def _no_images(backbone: ImageEncoder) -> Tensor:
    size = backbone.preprocess.size
    return torch.zeros(_IMAGES, 3, size, size, device=backbone.device, dtype=backbone.dtype)


def kept_bytes(model: ImageModel, compute: Callable[[], object]) -> int:
    """Return the bytes that `compute()` saves for the backward pass in training mode, without the model's tensors.

    Parameters are never counted, also if they belong to a frozen module that the method holds beside its own tensors.
    """
    tensors = (*model.backbone.model.parameters(), *model.backbone.model.buffers(), *model.method.state_dict().values())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with _left_as_it_was(model), keeping_rng(model.backbone.device):
        model.train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            compute()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own)


@contextmanager
def _left_as_it_was(model: ImageModel) -> Iterator[None]:
    """Restore the training modes of modules and the values of buffers, as of a batch norm, after a `with` block."""
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


def _tokens(model: ImageModel, images: Tensor) -> int:
    """Return the number of tokens of an image in the vision tower, measured in one forward pass."""
    backbone = model.backbone
    with watched(backbone.model, backbone.towers, ["vision.0"]) as seen, torch.inference_mode():
        backbone.encode_image(images)
    tokens, _ = seen["vision.0"]
    return tokens.shape[1]
