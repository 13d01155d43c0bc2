"""An estimate of the memory of a training step, before training starts.

What a step keeps for its backward pass is measured on two images and on the classes, under the method's edits. To it
are added the gradients of the trained parameters, and the averages that an optimiser keeps of them.

For conversations it is a formula over the sizes of the model and of the conversations. A block of width d whose
MLP has the hidden width h keeps about 8 d + 2 kv + 4 h numbers of each token, where kv is the width of keys and of
values: inputs and outputs of two norms, queries, keys, values, the output of attention, and four stages of the MLP. The
head keeps three numbers for each word of the vocabulary at each token that predicts an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from adapt import tasks
from adapt.backbones.tower import Tower
from adapt.common.devices import free_bytes, keeping_rng
from adapt.common.errors import AdaptError
from adapt.common.shown import readable_bytes
from adapt.data.bags import largest
from adapt.data.item import Item
from adapt.engine.hooks import token_count
from adapt.methods.base import Context
from adapt.models.base import Adapted, is_native
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import TrainSettings
from adapt.training.batches import Batches, KnownBatches
from adapt.training.loop import autocast

if TYPE_CHECKING:
    from adapt.models.native_vlm import ChatModel

_FP32 = 4  # bytes


@dataclass(frozen=True)
class ChatBytes:
    """The approximate memory in bytes of a training step on the longest conversations of a data set."""

    noun: ClassVar = "conversations"
    answered: int
    """The largest number of tokens of answers in a conversation."""
    each: int
    """The memory that a conversation needs."""

    def of(self, conversations: int) -> int:
        """Return the memory in bytes of a step on this number of conversations."""
        return conversations * self.each


def chat_bytes(model: ChatModel, items: Sequence[Item], precision: str, stored: torch.dtype | None = None) -> ChatBytes:
    """Return the memory of a training step on `items`, from the sizes of their images and of the model alone.

    `stored` is the precision of the weights, by default that of the model.
    """
    config, backbone = model.backbone.vlm.config, model.backbone
    half = precision in ("bf16", "fp16") or (stored or backbone.dtype) in (torch.bfloat16, torch.float16)
    each = 2 if half else _FP32
    tokens, answered = max(model.lengths(items)), max(_answered(model, item) for item in items)
    names = model.class_names if model.class_loss.scores_names and tasks.of(items).has_class_loss else ()
    if names:
        answered = _tokens_of(model, names)
    if names or items[0].task.chats(items[0], "")[1:]:  # several answers follow one beginning
        tokens = tokens * len(names) if names and model.path == "plain" else tokens + answered
    towers = {"decoder": tokens}  # and the tokens of a conversation in it
    if "vision" in model.method.touches:
        towers["vision"] = round(_patches_of_a_token(config) * tokens)
    sizes = [(count, *_numbers(model, backbone.tower(name))) for name, count in towers.items()]
    kept, current = sum(count * kept for count, kept, _ in sizes), max(count * now for count, _, now in sizes)
    needed = each * (kept + current) + answered * config.get_text_config().vocab_size * 3 * _FP32
    needed *= items[0].task.rows_of_chats
    return ChatBytes(answered, needed)


def _patches_of_a_token(config: Any) -> float:
    """Return how many patches of the vision tower become one token of the decoder, by the names of each family."""
    eyes = config.vision_config
    if pooled := getattr(config, "mm_tokens_per_image", 0):  # Gemma 3
        return float((eyes.image_size / eyes.patch_size) ** 2 / pooled)
    if ratio := getattr(config, "downsample_ratio", 0):  # InternVL
        return float(ratio**-2)
    merged = getattr(config, "scale_factor", 0) or getattr(eyes, "spatial_merge_size", 1)
    return float(merged**2)


def _numbers(model: ChatModel, tower: Tower) -> tuple[int, int]:
    """Return how many numbers of each token the blocks of a tower keep, and how many the current block needs.

    Blocks before the first edited one keep nothing, if no edited tower comes before them. With checkpointing, a block
    keeps its input, and the current block is held three times: as first computed, as recomputed, and as gradients.
    """
    edited = (
        [edit.block or 0 for edit in model.method.edits(tower, Context())] if tower.name in model.method.touches else []
    )
    alone = tower.name == "vision" or not {"vision", "connector"} & model.method.touches
    blocks = len(tower.blocks) - (min(edited, default=0) if alone else 0)
    maps = tower.blocks[0].projections
    hidden = max(each.shape[0] for each in maps.values())
    block = 8 * tower.width + 2 * maps["k"].shape[0] + 4 * hidden
    return (blocks * tower.width, 3 * block) if model.checkpointing else (blocks * block, block)


def _answered(model: ChatModel, item: Item) -> int:
    """Return about how many tokens an item's answers have, with two that end each."""
    chats = item.task.chats(item, model.backbone.question)
    answers = [turn.text for chat in chats for turn in chat.turns if turn.role == "assistant" and turn.learned]
    return _tokens_of(model, answers) if answers else 0


def _tokens_of(model: ChatModel, answers: Sequence[str]) -> int:
    return sum(len(ids) + 2 for ids in model.backbone.tokenizer(list(answers))["input_ids"])


_IMAGES = 2  # images to measure on: norms over a batch need two
_HELD = 1.25  # bytes that the allocator reserves for each byte that is kept, as measured


def check_memory(model: Adapted, batches: Batches, settings: TrainSettings, processes: int = 1) -> int:
    """Return the estimated memory of a training step in bytes, without the model, or 0 if steps read features.

    Each of the `processes` encodes a fraction of the images. Raises AdaptError, which suggests a batch size that fits,
    if the step needs more than the free memory.
    """
    step: StepBytes | ChatBytes
    if is_native(model):
        step = chat_bytes(model, batches.items, settings.precision)
    else:
        block = batches.block if isinstance(batches, KnownBatches) else None
        if not isinstance(model, ImageModel) or (isinstance(batches, KnownBatches) and block is None):
            return 0
        with autocast(model.backbone.device, settings.precision):
            step = step_bytes(model, block)
    size, free = -(-min(settings.batch_size, len(batches.items)) // processes), free_bytes(model.backbone.device)
    each = largest(batches.items)
    # gradients and the optimiser's averages
    held = sum(parameter.nbytes for parameter in model.method.trains()) * (2 if settings.optimizer == "sgd" else 3)
    needed = held + step.of(size * each)
    if needed > free:
        fitting = next((n for n in range(size - 1, 0, -1) if held + step.of(n * each) <= free), 0)
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
        tokens = (
            model.image_tokens(backbone.blank().repeat(_IMAGES, 1, 1, 1)) if "tokens" in model.method.reads else None
        )
    return kept_bytes(model, lambda: model.class_features(features, tokens)) // _IMAGES


def _of_an_image(model: ImageModel, block: int | None) -> tuple[int, int]:
    backbone = model.backbone
    working = 12 * backbone.preprocess.size**2  # three channels of fp32
    if "vision" not in backbone.towers:
        return 0, working
    tower, images = backbone.tower("vision"), backbone.blank().repeat(_IMAGES, 1, 1, 1)
    inner = max(projection.shape[0] for projection in tower.blocks[-1].projections.values())
    working += 4 * token_count(backbone) * (8 * tower.width + 2 * inner)
    inputs = images if block is None else model.block_inputs(images, block)
    return kept_bytes(model, lambda: model.image_features(inputs)) // _IMAGES, working


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
