"""A common interface to the tokenizers of open_clip and transformers, with the token ids that prompts need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from pydantic import BaseModel
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.shown import brief, one_line

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import PreTrainedTokenizerBase


class TextTokenizer(Protocol):
    """The interface of tokenizers, which return the token ids of a text with or without special tokens."""

    context_length: int
    pad_id: int

    def __hash__(self) -> int:
        """Return a hash that is equal for tokenizers that compare equal."""

    def row(self, text: str) -> list[int]:
        """Return the token ids of `text` with the model's special tokens, without truncation or padding at the end."""

    def pieces(self, text: str) -> list[int]:
        """Return the token ids of `text` without start and end tokens."""

    def token(self, token_id: int) -> str:
        """Return the text of the token with the id `token_id`."""


class SimpleText:
    """open_clip's own BPE tokenizer, which adds a start token and an end token and pads with zeros."""

    pad_id = 0

    def __init__(self, tokenizer: SimpleTokenizer, context_length: int) -> None:
        self._tokenizer = tokenizer
        self.context_length = context_length

    def pieces(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def row(self, text: str) -> list[int]:
        return [self._tokenizer.sot_token_id, *self.pieces(text), self._tokenizer.eot_token_id]

    def token(self, token_id: int) -> str:
        return self._tokenizer.decoder[token_id].removesuffix("</w>")


class HFText:
    """A transformers tokenizer, used directly or with the extra options of open_clip's `HFTokenizer`.

    `clean` is a function that cleans the text first. `strip_sep` (for CLIPA) replaces the separator token by 0, and
    `class_token_last` (for CLIPS) puts a class token at the end of the context, after the padding.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        clean: Callable[[str], str] = str,
        strip_sep: bool = False,
        class_token_last: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._clean = clean
        self._struck = tokenizer.sep_token_id if strip_sep else None
        self._class_token_last = class_token_last
        self.context_length = context_length
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def pieces(self, text: str) -> list[int]:
        return self._strike(self._tokenizer(self._clean(text), add_special_tokens=False)["input_ids"])

    def row(self, text: str) -> list[int]:
        if not self._class_token_last:
            return self._strike(self._tokenizer(self._clean(text))["input_ids"])
        ids = [self._tokenizer.bos_token_id, *self.pieces(text), self._tokenizer.eos_token_id]
        return ids + [self.pad_id] * (self.context_length - 1 - len(ids)) + [self._tokenizer.cls_token_id]

    def _strike(self, ids: Iterable[int]) -> list[int]:
        return [0 if token_id == self._struck else token_id for token_id in ids]

    def token(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id])).strip() or repr(self._tokenizer.convert_ids_to_tokens(token_id))


_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


class _Token(BaseModel):
    content: str


class _Rules(BaseModel):
    """The parts of a tokenizer file that transformers changes; the rest is the library's."""

    truncation: None
    padding: None
    added_tokens: list[_Token]


class _Settings(BaseModel, extra="forbid"):
    """A tokenizer's configuration in which transformers adds nothing to the tokenizer file."""

    tokenizer_class: Literal["PreTrainedTokenizerFast"]
    bos_token: str
    eos_token: str
    pad_token: str
    clean_up_tokenization_spaces: Literal[False]
    model_max_length: int | None = None


class FileText:
    """The tokenizer of a folder, with the token ids of open_clip's `HFTokenizer`, but without transformers."""

    def __init__(self, files: Mapping[str, str], pad_token: str, context_length: int) -> None:
        from tokenizers import Tokenizer

        self._files = files
        self._tokenizer = Tokenizer.from_str(files[_TOKENIZER])
        self.context_length = context_length
        self.pad_id = self._tokenizer.get_vocab()[pad_token]

    @classmethod
    def of(cls, folder: Path, context_length: int) -> FileText | None:
        """Return the tokenizer of a folder, or None if transformers is needed to read it.

        Raises AdaptError if the tokenizer file is damaged.
        """
        if (folder / "special_tokens_map.json").exists() or (folder / "added_tokens.json").exists():
            return None
        try:
            files = {name: (folder / name).read_text(encoding="utf-8") for name in (_TOKENIZER, _TOKENIZER_CONFIG)}
            rules = _Rules.model_validate_json(files[_TOKENIZER])
            settings = _Settings.model_validate_json(files[_TOKENIZER_CONFIG])
        except (OSError, ValueError):
            return None
        special = {settings.bos_token, settings.eos_token, settings.pad_token}
        if not special <= {token.content for token in rules.added_tokens}:
            return None
        try:
            return cls(files, settings.pad_token, context_length)
        except Exception as error:  # the library raises no narrower one
            raise AdaptError(f"{folder / _TOKENIZER} is damaged: {one_line(error)}; fetch the folder again") from error

    def pieces(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(_cleaned(text), add_special_tokens=False).ids)

    def row(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(_cleaned(text)).ids)

    def token(self, token_id: int) -> str:
        decoded: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return decoded.strip() or repr(self._tokenizer.id_to_token(token_id))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files to `folder`, as they were read."""
        for name, text in self._files.items():
            (folder / name).write_text(text, encoding="utf-8")


def _cleaned(text: str) -> str:
    """Return `text` with repaired characters and single spaces, and without HTML's names of characters."""
    from ftfy import fix_text

    return " ".join(unescape(unescape(fix_text(text))).split())


@lru_cache(maxsize=16)
def _control(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return special - ({tokenizer.unk_token} - {tokenizer.eos_token})  # that ends nothing, and may be put for an image


def check_words(tokenizer: PreTrainedTokenizerBase, words: str, allowed: str = "") -> None:
    """Raise AdaptError if words have a control token that is not in `allowed`, and would be read as the real one.

    Tokenizers of transformers cannot tell the two apart: a template's tokens and the words are one text for them.
    """
    if found := [token for token in _control(tokenizer) if token in words and token not in allowed]:
        raise AdaptError(f"{brief(words)} has {max(found)}, a control token of the model: take it out of the words")


_PROBES = (
    "",
    "a photo of a red panda.",
    "A Cat_and-dog, isn't it?  (No. 7)\n",
    "na\u00efve caf\u00e9 \u2014 \u732b &amp; \U0001f63a",
    "a photo of a pneumonoultramicroscopicsilicovolcanoconiosis, a type of lung disease.",
)  # words, punctuation, other scripts, and a long class name


def check_tokenizer(tokenizer: TextTokenizer, library: Callable[[list[str]], Tensor], name: str) -> None:
    """Raise AdaptError if `tokenizer` and the library's own tokenizer give different token ids for a few test texts."""
    for text in _PROBES:
        row = tokenizer.row(text)
        if len(row) > tokenizer.context_length:
            continue  # the library cuts it, adapt refuses it
        with torch.device("cpu"):  # a model may be built on the meta device
            ours, theirs = pad_rows([row], tokenizer)[0].tolist(), library([text])[0].tolist()
        if ours != theirs:
            raise AdaptError(
                f"the tokenizer {name} encodes {text!r} as {theirs}, but adapt would encode the text as {ours}, "
                "because the tokenizer has an option that adapt does not support. Give a tokenizer without this option"
            )


def pad_rows(rows: Iterable[list[int]], tokenizer: TextTokenizer) -> Tensor:
    """Return lists of token ids as one tensor `(n, context length)`, padded to the context length.

    Raises AdaptError if a list is longer than the context length, because truncation could silently cut a class name.
    """
    rows = list(rows)
    length = tokenizer.context_length
    ids = torch.full((len(rows), length), tokenizer.pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise AdaptError(
                f"a prompt has {len(row)} tokens, but the text tower reads at most {length}: shorten the class name or "
                "learn fewer context tokens"
            )
        ids[i, : len(row)] = torch.tensor(row)
    return ids
