"""Answers of a native vision-language model that can stop after any token, and go on later where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import StoppingCriteriaList

from adapt.backbones.native import ChatImages
from adapt.chats import Chat
from adapt.models import generation
from adapt.models.base import evaluating
from adapt.models.native_vlm import ChatModel

Ended = Callable[[Tensor], Tensor]
_MOST = 2**20  # tokens, where a model knows no limit
_TYPES = ("mm_token_type_ids", "token_type_ids")  # inputs with an entry for each token, 0 for words of an answer


class OngoingAnswers:
    """The next answers in several conversations, which transformers' `generate` writes together, token by token.

    In between, other answers of the same backbone may be generated. `options` are options of `generate`.
    """

    def __init__(
        self, model: ChatModel, images: Sequence[ChatImages], chats: Sequence[Chat], **options: object
    ) -> None:
        self._model, self._options = model, {"do_sample": False} | options
        with torch.no_grad(), evaluating(model):
            seen = model.encoded(images) if model.path == "fast" else images
            self._inputs: dict[str, Any] = model.backbone.rows(chats, seen, left=True, asks=True).inputs
        self.prompt_tokens: list[int] = self._inputs["attention_mask"].sum(-1).tolist()
        """The number of tokens of each conversation, without its answer."""
        self._offsets: Tensor | None = None

    @torch.no_grad()
    def go_on(self, ended: Ended) -> None:
        """Generate tokens, and call `ended` with the next token of each answer `(b,)` until it returns all true.

        `ended` returns which answers have ended `(b,)`; if it returns that all have, generation stops, and a later call
        goes on.
        """
        vlm, tokens = self._model.backbone.vlm, self._inputs["input_ids"].shape[1]
        settings = {
            "max_new_tokens": min(self._model.backbone.longest, _MOST),  # `ended` knows when each has enough
            "num_beams": 1,
            "cache_implementation": None,  # the growing one, whatever the checkpoint's configuration asks for
            "pad_token_id": generation.padding(self._model.backbone.tokenizer),
            "eos_token_id": None,  # `ended` knows what ends an answer
            "stopping_criteria": StoppingCriteriaList([lambda ids, scores, **_: ended(ids[:, -1]).to(ids.device)]),
            "return_dict_in_generate": True,
            **self._options,
        }
        with evaluating(self._model):
            output = self._model._edited(lambda: self._generated(settings), merge=len(self.prompt_tokens) == 1)
        kept = {name: self._inputs[name] for name in ("attention_mask", *_TYPES) if name in self._inputs}
        new = output.sequences.shape[1] - tokens
        longer = {name: F.pad(value, (0, new), value=int(name == "attention_mask")) for name, value in kept.items()}
        self._inputs = {"input_ids": output.sequences, **longer, "cache": output.cache}  # which has seen the images
        self._offsets = getattr(vlm.model, "rope_deltas", None)

    def _generated(self, settings: dict[str, Any]) -> Any:
        vlm = self._model.backbone.vlm
        if self._offsets is not None:  # Qwen's positions of words behind images, which its last call left in the model
            vlm.model.rope_deltas = self._offsets
        return vlm.generate(**self._inputs, **settings)
