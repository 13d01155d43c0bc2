"""Prompts as data: the token ids of a text, some of which are placeholders for learned tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common import plain
from adapt.common.errors import AdaptError

Texts = Sequence[str] | Callable[[str], Sequence[str]]  # templates for all classes, or of a name, the class's own
PLACEHOLDER = "X"  # as in CoOp; its embedding is overwritten


@dataclass(frozen=True)
class Prompt:
    """A tokenised text from the start token to the end token, without padding.

    `slots[i]` is the index of the learned token at position `i`, or None for a token of the text. `name` is
    the range of positions of the class name, or an empty range if the positions are unknown.
    """

    ids: tuple[int, ...]
    slots: tuple[int | None, ...]
    name: range = range(0)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.slots):
            raise ValueError(f"a prompt has {len(self.ids)} ids but {len(self.slots)} slots; expected equal numbers")

    def with_slots(self, count: int) -> Prompt:
        """Return this prompt with `count` slots behind the first token, whose id they repeat, and no other slots."""
        return Prompt(
            self.ids[:1] * (1 + count) + self.ids[1:],
            (None, *range(count), *(None,) * (len(self.ids) - 1)),
            range(self.name.start + count, self.name.stop + count) if self.name else self.name,
        )


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return `class_names` as a tuple. Raises AdaptError for an empty list, and an empty, repeated or too long name."""
    names = tuple(class_names)
    if isinstance(class_names, str) or not names:
        raise AdaptError(f"class_names is {class_names!r}; expected a list of at least one name")
    if len(names) > plain.NAMES:
        raise AdaptError(f"there are {len(names):,} class names; expected at most {plain.NAMES:,}")
    for name in names:
        if not isinstance(name, str):
            raise AdaptError(f"class name {name!r} is not a text; every class needs a readable name")
        if not name.strip():
            raise AdaptError(f"class name {name!r} is empty; every class needs a readable name")
        if len(name) > plain.TEXT:
            raise AdaptError(
                f"class name {name[:40]!r}... has {len(name):,} characters; expected at most {plain.TEXT:,}"
            )
    most_common, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise AdaptError(f"class name {most_common!r} appears {count} times; expected a different name for each class")
    return names


def readable(class_name: str) -> str:
    """Return a class name for a prompt, with spaces in place of underscores (CoOp)."""
    return class_name.replace("_", " ")


def from_template(tokenizer: TextTokenizer, template: str, class_name: str) -> Prompt:
    """Return the prompt of a class, made from a template such as `a photo of a {}.`"""
    return of_text(tokenizer, template.replace("{}", readable(class_name)))


def of_text(tokenizer: TextTokenizer, text: str) -> Prompt:
    """Return the prompt of a text without learned tokens."""
    ids = tokenizer.row(text)
    return Prompt(tuple(ids), (None,) * len(ids))


def from_templates(tokenizer: TextTokenizer, templates: str | Sequence[str], class_name: str) -> list[Prompt]:
    """Return the prompts of a class, one for each template."""
    return [from_template(tokenizer, each, class_name) for each in several(templates)]


def texts_key(templates: Texts) -> Hashable:
    """Return a key by which features of these `templates` can be stored."""
    return templates if callable(templates) else tuple(templates)


def several(templates: str | Sequence[str]) -> Sequence[str]:
    """Return `templates` as a sequence, where a single string becomes a list of one template."""
    return [templates] if isinstance(templates, str) else templates


def with_context(tokenizer: TextTokenizer, words: str, n_ctx: int, class_name: str) -> Prompt:
    """Return the prompt `CONTEXT NAME.`, in which the first `n_ctx` tokens of the context are learned.

    The context is `words`, whose tokens after the first `n_ctx` remain text (MaPLe), or `n_ctx` placeholders if
    `words` is empty. Raises AdaptError if the class name changes the tokens of the context.
    """
    name = readable(class_name)
    context = readable(words) or " ".join([PLACEHOLDER] * n_ctx)
    (start, pieces), ids = _in_front(tokenizer, context), tokenizer.row(f"{context} {name}.".lstrip())
    name_at = start + len(pieces)
    if tuple(ids[start:name_at]) != pieces or (not words and len(pieces) != n_ctx):
        raise AdaptError(
            f"the tokenizer does not encode {context!r} as {len(pieces) if words else n_ctx} separate tokens in front "
            f"of {name!r}: choose words for ctx_init that the tokenizer encodes one by one"
        )
    slots = [None] * start + list(range(n_ctx)) + [None] * (len(ids) - start - n_ctx)
    return Prompt(tuple(ids), tuple(slots), range(name_at, name_at + len(tokenizer.pieces(name))))


def around_word(tokenizer: TextTokenizer, parts: Sequence[str]) -> Prompt:
    """Return the prompt of a text in `parts`, between each two of which stands the same learned word, slot 0.

    Raises AdaptError if the text is too long for the text tower, or if the tokenizer does not keep a word apart.
    """
    text, read = parts[0].strip(), []
    for part in parts[1:]:
        text = f"{text} {PLACEHOLDER}".lstrip()
        read.append(_in_front(tokenizer, text))
        text = f"{text} {part.strip()}".rstrip()
    ids = tokenizer.row(text)
    slots: list[int | None] = [None] * len(ids)
    for start, pieces in read:
        place = start + len(pieces) - 1
        if tuple(ids[start : place + 1]) != pieces or tokenizer.token(ids[place]).strip().upper() != PLACEHOLDER:
            raise AdaptError(f"the tokenizer does not keep a learned word apart in {text!r}: write spaces around it")
        slots[place] = 0
    prompt = Prompt(tuple(ids), tuple(slots))
    check_length(tokenizer, prompt, f"the text {text!r}", "the text")
    return prompt


def check_first_token(tokenizer: TextTokenizer) -> None:
    """Raise AdaptError if texts begin without a start token, behind which learned tokens could enter."""
    if _in_front(tokenizer, PLACEHOLDER)[0] == 0:
        raise AdaptError(
            "learned tokens enter behind a text's start token, which this tokenizer does not give: use another method, "
            "such as maple"
        )


@lru_cache(maxsize=16)  # the same for all classes
def _in_front(tokenizer: TextTokenizer, context: str) -> tuple[int, tuple[int, ...]]:
    """Return the number of special tokens before a text, and the token ids of `context` without special tokens."""
    start = tokenizer.row(PLACEHOLDER).index(tokenizer.pieces(PLACEHOLDER)[0])
    return start, tuple(tokenizer.pieces(context))


def of_classes(
    tokenizer: TextTokenizer, class_names: Sequence[str], prompts: Callable[[str], list[Prompt]]
) -> list[list[Prompt]]:
    """Return a list of prompts for each class, made from the class name by the function `prompts`.

    Raises AdaptError for a class whose prompt is too long, and for two classes with the same tokens. A tokenizer may
    ignore case, underscores, punctuation or unknown letters. An underscore at the end of a name tells it from another
    on purpose, as ImageNet's two classes "missile" need it, whose published prompts are the same.
    """
    names: dict[tuple[Prompt, ...], str] = {}
    listed = []
    for name in class_names:
        own = tuple(prompts(name))
        longest = max(own, key=lambda prompt: len(prompt.ids))
        shorten = "the class name or learn fewer context tokens"
        check_length(tokenizer, longest, f"the prompt of class {name!r}", shorten)
        if own in names and name.rstrip("_") != names[own]:
            raise AdaptError(
                f"class names {names[own]!r} and {name!r} have the same tokens: rename one of them "
                "(data.names is a file with other names), or merge the two classes"
            )
        names.setdefault(own, name)
        listed.append(list(own))
    return listed


def check_length(tokenizer: TextTokenizer, prompt: Prompt, what: str, shorten: str) -> None:
    """Raise AdaptError if `prompt` is too long for the text tower. The message asks to shorten `shorten`."""
    if len(prompt.ids) > tokenizer.context_length:
        raise AdaptError(
            f"{what} has {len(prompt.ids)} tokens but the text tower reads {tokenizer.context_length}: shorten "
            f"{shorten}"
        )


def context_length(n_ctx: int | None, words: str, tokenizer: TextTokenizer) -> int | None:
    """Return the number of learned context tokens: `n_ctx`, or the number of tokens in `words` if `n_ctx` is None.

    The result is None without `n_ctx` and `words`. Raises AdaptError if `n_ctx` and `words` disagree.
    """
    count = len(tokenizer.pieces(readable(words)))
    if words and n_ctx not in (None, count):
        raise AdaptError(
            f"ctx_init {words!r} has {count} tokens but n_ctx is {n_ctx}: leave n_ctx out, give ctx_init {n_ctx} "
            'tokens, or leave ctx_init empty ("") for a random initialisation'
        )
    return n_ctx or count or None


def initial_context(backbone: Backbone, words: str, n_ctx: int) -> Tensor:
    """Return the initial learned tokens `(n_ctx, d)` in fp32: embeddings of `words`, or N(0, 0.02) if `words` is empty.

    Raises AdaptError if `words` has fewer than `n_ctx` tokens.
    """
    tower = backbone.tower("text")
    if not words:
        return torch.empty(n_ctx, tower.width).normal_(std=0.02).to(backbone.device)
    pieces = backbone.tokenizer.pieces(readable(words))
    if len(pieces) < n_ctx:
        raise AdaptError(
            f"ctx_init {words!r} has {len(pieces)} tokens but n_ctx is {n_ctx}: give more words, or leave ctx_init "
            'empty ("") for a random initialisation'
        )
    embedding = tower.embedding
    with torch.no_grad():
        return embedding(torch.tensor(pieces[:n_ctx], device=embedding.weight.device)).float()


def published_words(n_ctx: int) -> str:
    """Return the words that initialise `n_ctx` learned tokens in MaPLe, IVLP and VPT; "" for more than four tokens."""
    return "a photo of a" if n_ctx <= 4 else ""


def shared_prefix(prompts: Sequence[Prompt], per_class: bool) -> int:
    """Return the number of leading tokens that all prompts have in common, not counting an end token.

    With `per_class`, learned tokens differ between classes, so the prefix ends before the first learned token.
    """
    length = 0
    for column in zip(*(zip(prompt.ids, prompt.slots) for prompt in prompts)):
        if column.count(column[0]) < len(column) or (per_class and column[0][1] is not None):
            break
        length += 1
    return min(length, min(len(prompt.ids) for prompt in prompts) - 1)
