"""One interface over the libraries' tokenizers: rows of ids without padding, and the bare pieces of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from adapt.errors import AdaptError


class TextTokenizer(Protocol):
    """What prompts need of a tokenizer."""

    context_length: int
    pad_id: int

    def row(self, text: str) -> list[int]:
        """The ids of `text` with the start and end tokens that the model expects, unpadded and untruncated."""

    def pieces(self, text: str) -> list[int]:
        """The ids of `text` alone."""

    def token(self, token_id: int) -> str:
        """How token `token_id` reads."""


class SimpleText:
    """open_clip's own BPE tokenizer: start, pieces, end; padded with zeros."""

    pad_id = 0

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = context_length

    def pieces(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def row(self, text: str) -> list[int]:
        return [self._tokenizer.sot_token_id, *self.pieces(text), self._tokenizer.eot_token_id]

    def token(self, token_id: int) -> str:
        return self._tokenizer.decoder[token_id].removesuffix("</w>")


class HFText:
    """A tokenizer of transformers, alone or inside open_clip's wrapper (which cleans the text first)."""

    def __init__(self, tokenizer: Any, context_length: int, clean: Callable[[str], str] = str) -> None:
        self._tokenizer = tokenizer
        self._clean = clean
        self.context_length = context_length
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def pieces(self, text: str) -> list[int]:
        return list(self._tokenizer(self._clean(text), add_special_tokens=False)["input_ids"])

    def row(self, text: str) -> list[int]:
        return list(self._tokenizer(self._clean(text))["input_ids"])

    def token(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id]).strip() or repr(self._tokenizer.convert_ids_to_tokens(token_id))


def pad_rows(rows: Iterable[list[int]], tokenizer: TextTokenizer) -> Tensor:
    """Unpadded rows to `(n, context length)`.

    Raises AdaptError where a row is longer than the context, instead of cutting a class name silently.
    """
    rows = list(rows)
    length = tokenizer.context_length
    ids = torch.full((len(rows), length), tokenizer.pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise AdaptError(
                f"a prompt has {len(row)} tokens but the text tower reads {length}: shorten the class name or "
                "learn fewer context tokens"
            )
        ids[i, : len(row)] = torch.tensor(row)
    return ids
