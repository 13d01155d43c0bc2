"""Native vision-language models as dual encoders: the state that follows an image, or a text, is its feature.

Paper: Ouali et al., VladVA: Discriminative Fine-tuning of LVLMs, CVPR 2025, after E5-V (Jiang et al., 2024; reference
kongds/E5-V `bcefe73`, for the question and the state that is read). VladVA's code is not public: our reading.

An image, or a text in its place, is followed by one question, and the decoder's last state, after the final norm and
where the answer would begin, is the feature. Both sides share all weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.native import NativeVLM
from adapt.backbones.preprocess import Preprocess
from adapt.chats import Chat
from adapt.common.plain import JsonObject

QUESTION = "Summarize the above in one word."
SIDE = 448  # pixels, where the model's processor has no size of its own
LONGEST = 512  # tokens of a text with its question
SCALE = 20.0  # of cosines (E5-V's temperature of 0.05)


class LastState:
    """Reads images and texts with a native model; `question` follows each. It is a tokenizer of texts as well."""

    def __init__(self, native: NativeVLM, question: str) -> None:
        self.native, self.question = native, question
        tokenizer = native.tokenizer
        self.pad_id = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.context_length = min(LONGEST, native.longest)

    def row(self, text: str) -> list[int]:
        """Return the token ids of a text with its question, up to where an answer would begin."""
        rows = self.native.rows([Chat.about(f"{text} {self.question}".lstrip(), images=0)], [[]], asks=True)
        ids: list[int] = rows.inputs["input_ids"][0].tolist()
        return ids

    def pieces(self, text: str) -> list[int]:
        """Return the token ids of a text by itself."""
        return list(self.native.tokenizer(text, add_special_tokens=False)["input_ids"])

    def token(self, token_id: int) -> str:
        """Return the text of a token."""
        return str(self.native.tokenizer.decode([token_id])).strip()

    def read_texts(self, ids: Tensor) -> Tensor:
        """Return features `(n, d)` of rows of token ids `(n, l)`, padded on the right."""
        lengths = (ids != self.pad_id).long().cumsum(-1).argmax(-1) + 1  # a row never ends with the padding itself
        ids = ids[:, : int(lengths.max())]
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return self._last({"input_ids": ids, "attention_mask": mask.long()})

    def read_images(self, images: Tensor) -> Tensor:
        """Return features `(b, d)` of images `(b, 3, h, w)` with values from 0 to 1."""
        asked = [Chat.about(self.question)] * len(images)
        return self._last(self.native.rows(asked, [[picture] for picture in pictures(images)], asks=True).inputs)

    def _last(self, inputs: dict[str, Any]) -> Tensor:
        states: Tensor = self.native.vlm.model(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(-1) - 1
        return states[torch.arange(len(states), device=states.device), last]


def pictures(images: Tensor) -> list[Image.Image]:
    """Return images `(b, 3, h, w)` with values from 0 to 1 as pictures, which a processor prepares."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(each) for each in pixels]


class EmbeddingVLM(DualEncoder):
    """A native vision-language model as a dual encoder. The towers `vision` and `text` are both its decoder.

    Images are made square, of the size that the model's processor has.
    """

    def __init__(self, native: NativeVLM, question: str = QUESTION, name: str | None = None) -> None:
        size = side(native)
        decoder = native.tower("decoder")
        self.states = LastState(native, question)
        super().__init__(
            model=native.model,
            towers={name: replace(decoder, name=name) for name in ("vision", "text")},
            tokenizer=self.states,
            preprocess=Preprocess(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, resize="squash"),
            encode_image=self.states.read_images,
            encode_text=self.states.read_texts,
            name=name,
        )

    @property
    def logit_scale(self) -> float:
        return SCALE

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of images before the processor reads them."""
        return torch.float32

    _parameter = Backbone._parameter  # as there is no logit scale

    def reading(self) -> dict[str, object]:
        return super().reading() | {"question": self.states.question, "native": self.states.native.reading()}

    def read_as(self, reading: JsonObject) -> None:
        self.states.question = reading.get("question", self.states.question)

    def caption_losses(self, images: Tensor, texts: Sequence[str], asked: str) -> Tensor:
        """Return the cross-entropies `(t,)` of the t tokens of `texts`, as answers to `asked` about images.

        The images are `(b, 3, h, w)`.
        """
        native, chats = self.states.native, [Chat.about(asked, text) for text in texts]
        rows = native.rows(chats, [[picture] for picture in pictures(images)])
        wanted = rows.answers[:, 1:]
        logits = native.vlm(**rows.inputs, logits_to_keep=F.pad(wanted, (0, 1)), use_cache=False).logits
        return F.cross_entropy(logits.float(), rows.inputs["input_ids"][:, 1:][wanted], reduction="none")


def side(native: NativeVLM) -> int:
    """Return the width and height of the images that a native model's processor reads, or 448 if it has no size."""
    settings = json.loads(native.processor.image_processor.to_json_string())
    for found in (settings.get("crop_size"), settings.get("size")):
        if isinstance(found, dict) and found.get("height") and found.get("height") == found.get("width"):
            return int(found["height"])
    return SIDE
