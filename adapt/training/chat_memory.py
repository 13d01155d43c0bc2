"""The memory of a training step on conversations, by a formula over the sizes of the model and of the conversations.

A block of width d whose MLP has the hidden width h keeps about 8 d + 2 kv + 4 h numbers of each token for the backward
pass, where kv is the width of keys and of values: inputs and outputs of two norms, queries, keys, values, the output of
attention, and four stages of the MLP. The head keeps three numbers for each word of the vocabulary at each token that
predicts an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from adapt.backbones.tower import Tower
from adapt.data.item import Item
from adapt.methods.base import Context
from adapt.models.native_vlm import ChatModel

_FP32 = 4  # bytes


@dataclass(frozen=True)
class ChatBytes:
    """The approximate memory in bytes of a training step on the longest conversations of a data set."""

    noun: ClassVar = "conversations"
    tokens: int
    """The number of tokens of the longest conversation."""
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
    tokens += answered if items[0].task.chats(items[0], "")[1:] else 0  # several answers follow one beginning
    towers = {"decoder": tokens}  # and the tokens of a conversation in it
    if "vision" in model.method.touches:
        towers["vision"] = round(_patches_of_a_token(config) * tokens)
    sizes = [(count, *_numbers(model, backbone.tower(name))) for name, count in towers.items()]
    kept, current = sum(count * kept for count, kept, _ in sizes), max(count * now for count, _, now in sizes)
    needed = each * (kept + current) + answered * config.get_text_config().vocab_size * 3 * _FP32
    needed *= items[0].task.rows_of_chats
    return ChatBytes(tokens, answered, needed)


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
    return sum(len(ids) + 2 for ids in model.backbone.tokenizer(answers)["input_ids"]) if answers else 0
