"""Native vision-language models as backbones of images alone: what the decoder knows where its answer would begin.

An image and a question pass through the model once, in its chat template, and nothing is generated. A feature is the
decoder's last state at that place, after the final norm, or the vectors of its attention heads: the values that each
has weighed and summed, before the output projection (Mitra et al., Sparse Attention Vectors, ICCV 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from adapt.backbones.embedding import pictures, side
from adapt.backbones.locks import alone
from adapt.backbones.native import ChatRows, NativeVLM
from adapt.backbones.preprocess import AsDecoded, Transform
from adapt.backbones.tower import Tower
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject

TOGETHER = 8  # rows that pass through the model at once


class NativeEyes(VisionEncoder):
    """A native vision-language model as a backbone of images alone, which answer `question` in one pass.

    What it reads there, its features, is the decoder's `last` state, or the vectors of all attention `heads` one after
    another: by layer, head and dimension. Images reach it as they were decoded, in lists, because the model's processor
    prepares them. Its towers cannot be edited. Raises AdaptError for heads that are not of one size in all layers.
    """

    as_decoded = True

    def __init__(self, native: NativeVLM, reads: Literal["last", "heads"] = "last", name: str | None = None) -> None:
        decoder = native.tower("decoder")
        self.native, self.reads, self.question = native, reads, native.question
        super().__init__(
            model=native.model,
            towers={},
            preprocess=replace(native.preprocess, size=side(native)),  # of random crops
            encode_image=self.read_images,
            name=name,
        )
        self._unchanging = native._unchanging  # whose hash is a part of this one's
        if reads == "heads":
            sizes = {block.projections["out"].shape[1] / decoder.heads for block in decoder.blocks}
            if len(sizes) > 1 or not (size := sizes.pop()).is_integer():
                raise AdaptError(
                    f"the attention heads of {native.describe()} are not of one size in all layers of its decoder, so "
                    "that they cannot be read: use last: in place of heads:"
                )
            self.heads = len(decoder.blocks), decoder.heads, int(size)
            self.kept_as, self.runs_alone = torch.float16, True

    @property
    def embed_dim(self) -> int:
        layers, heads, size = self.heads or (1, 1, self.native.tower("decoder").width)
        return layers * heads * size

    @property
    def sees(self) -> tuple[object, ...]:
        return *super().sees, self.reads, self.question, self.native.image_settings

    @property
    def stacks(self) -> dict[str, Tower]:
        return self.native.towers

    def transform(self, train: bool) -> Transform:
        augment = self.preprocess.augmenting() if train else ()
        return cast("Transform", AsDecoded(self.preprocess.turned, augment))

    def blank(self) -> Any:
        from PIL import Image

        return [[Image.new("RGB", (self.preprocess.size, self.preprocess.size))]]

    def reading(self) -> dict[str, object]:
        own = {"turned": self.preprocess.turned, "question": self.question, "reads": self.reads}
        return self.native.reading() | own

    def read_as(self, reading: JsonObject) -> None:
        self.native.read_as(reading)
        self.question = self.native.question

    def limited(self, most: int) -> Self:
        other = copy(self)
        other.native = self.native.limited(most)
        return other

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.encode_image = other.read_images  # of the copy, whose question and processor may become others
        return other

    def content(self) -> str:
        return "/".join((self.native.image_key, self.native.template, self.question, self.reads))

    def read_images(self, images: Any) -> Tensor:
        """Return features `(m, e)` of the m PIL images in a batch, a list of lists with the images of each item.

        Images may also be a tensor `(m, 3, h, w)` with values from 0 to 1.
        """
        every = pictures(images) if isinstance(images, Tensor) else [picture for own in images for picture in own]
        return self._read([Chat.about(self.question)] * len(every), [[picture] for picture in every])

    @property
    def longest(self) -> int:
        return self.native.longest

    def lengths(
        self, chats: Sequence[Chat], sizes: Sequence[Sequence[tuple[int, int]]], *, asks: bool = False
    ) -> list[int]:
        return self.native.lengths(chats, sizes, asks=asks)

    def check_size(self, size: tuple[int, int], name: str) -> None:
        [length] = self.lengths([Chat.about(self.question)], [[size]], asks=True)
        if length > self.longest:
            raise AdaptError(
                f"{name} takes {length:,} tokens with the question, and {self.describe()} reads at most "
                f"{self.longest:,}: set data.max_pixels for smaller images"
            )

    def read_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features `(n, e)` of texts, each as a user's turn without an image.

        Raises AdaptError if a text has more tokens than the decoder can read.
        """
        return self._read([Chat.about(text, images=0) for text in texts], [[] for _ in texts])

    def _read(self, chats: Sequence[Chat], images: Sequence[Any]) -> Tensor:
        parts = [slice(start, start + TOGETHER) for start in range(0, len(chats), TOGETHER)]
        return torch.cat([self.at_answers(self.native.rows(chats[part], images[part], asks=True)) for part in parts])

    def at_answers(self, rows: ChatRows) -> Tensor:
        """Return features `(b, e)` at the last token of each row, on whichever side the rows are padded."""
        mask = rows.inputs["attention_mask"]
        each = torch.arange(len(mask), device=mask.device)
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0][each, last])

        with ExitStack() as stack:
            if self.heads:
                stack.enter_context(alone(self.model))  # other threads would add to the list
                for block in self.native.tower("decoder").blocks:
                    stack.enter_context(block.projections["out"].module.register_forward_pre_hook(keep))
            states: Tensor = self.native.vlm.model(**rows.inputs, use_cache=False).last_hidden_state
        return torch.cat(seen, -1) if self.heads else states[each, last]
