"""Token sequences (rows) of questions and answers for a language model, and the loss on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.tokenizer import check_words
from adapt.backbones.vision_llm import IMAGE, VisionLLM
from adapt.common.errors import AdaptError
from adapt.models.prediction import NOT_FINITE

_NO_TARGET = -100  # the label that cross_entropy ignores
_VISUAL = -1  # the placeholder of a visual token


@dataclass(frozen=True)
class Rows:
    """A batch of padded token sequences `(b, l)`, which contain prompts with questions and, in training, answers."""

    ids: Tensor
    mask: Tensor  # True where there is a token
    targets: Tensor  # the tokens of answers, and elsewhere the ignored label

    @property
    def visual(self) -> Tensor:
        """The mask `(b, l)` of visual tokens, which are placeholders for tokens computed from the image."""
        return self.ids == _VISUAL

    @property
    def positions(self) -> Tensor:
        """The position of each token in its sequence, `(b, l)`, where padding does not count."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


def rows(
    backbone: VisionLLM,
    questions: Sequence[str],
    answers: Sequence[str] | None,
    visual: int,
    left: bool,
    examples: Sequence[tuple[str, str]] = (),
) -> Rows:
    """Return the tokens of `questions`, with `visual` placeholders for each image's tokens, and of any `answers`.

    Each sequence begins with `examples`, which are questions with their answers about images of their own. Sequences
    are padded on the left if `left` is True, and otherwise on the right. Raises AdaptError for a question with several
    images, an empty answer, a control token in the words, or a sequence longer than the language model reads.
    """
    before: list[int] = []
    for question, right in examples:
        before += _row(backbone, question, right, visual, first=not before)[0]
    own = [
        _row(backbone, question, answer, visual, first=not before)
        for question, answer in zip(questions, repeat(None) if answers is None else answers)
    ]
    tokens = [([*before, *ids], answer) for ids, answer in own]
    length = max(len(ids) for ids, _ in tokens)
    if length > backbone.longest:
        shown, fewer = (f" and {len(before)} for the examples", "give fewer examples, ") if before else ("", "")
        raise AdaptError(
            f"a question takes {length} tokens, {visual} of them for its image{shown}, but the language model reads at "
            f"most {backbone.longest} tokens: shorten the question or answer, {fewer}or use a method without visual "
            "tokens"
        )
    table = torch.full((3, len(tokens), length), 0)
    table[0], table[2] = padding(backbone.tokenizer), _NO_TARGET
    for index, (ids, answer) in enumerate(tokens):
        place = slice(length - len(ids), length) if left else slice(0, len(ids))
        table[0, index, place] = torch.tensor(ids)
        table[1, index, place] = 1
        table[2, index, place] = torch.tensor([_NO_TARGET] * (len(ids) - answer) + ids[len(ids) - answer :])
    ids, mask, targets = table.to(backbone.device)
    return Rows(ids, mask.bool(), targets)


def learned(backbone: VisionLLM, questions: Sequence[str], answers: Sequence[str]) -> int:
    """Return the number of tokens of `answers` that are learned, including the end tokens."""
    return sum(_row(backbone, question, answer, 0)[1] for question, answer in zip(questions, answers, strict=True))


def _row(
    backbone: VisionLLM, question: str, answer: str | None, visual: int, first: bool = True
) -> tuple[list[int], int]:
    """Return the token ids of one question and answer, and the number of answer tokens at the end.

    Only the first row of a sequence has the token that starts a text.
    """
    tokenizer = backbone.tokenizer
    for words in (question, answer or ""):
        check_words(tokenizer, words, IMAGE)
    places = question.count(IMAGE)
    if places > 1:
        raise AdaptError(f"{question!r} has {places} places for an image; expected one at most: write {IMAGE} once")
    prompt = backbone.prompt.replace(IMAGE, "") if places else backbone.prompt
    before, after = prompt.replace("{}", question).split(IMAGE)
    started = bool(tokenizer.bos_token) and before.startswith(tokenizer.bos_token)  # as in chat templates
    start = tokenizer(before, add_special_tokens=not started)["input_ids"]
    if not first and start[:1] == [tokenizer.bos_token_id]:
        del start[0]
    start += [_VISUAL] * visual
    if answer is None:
        return start + tokenizer(after, add_special_tokens=False)["input_ids"], 0
    if not answer.strip():
        raise AdaptError(f"the answer to {question!r} is empty; expected words")
    ids, count = backbone.answered(after, answer)
    return [*start, *ids, tokenizer.eos_token_id], count + 1


def ends(llm: Any, tokenizer: Any, *others: int | None) -> list[int]:
    """Return the ids of the tokens that end an answer: `others`, and those of the tokenizer and the language model."""
    own = llm.generation_config.eos_token_id
    known = {tokenizer.eos_token_id, *others, *(own if isinstance(own, list) else [own])}
    return sorted(known - {None})


def padding(tokenizer: Any) -> int:
    """Return the id of the token that pads sequences, which can be any token because padding is masked."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of answer tokens for logits `(b, l, v)`, and a mask `(b,)` of correct answers."""
    logits, targets = logits[:, :-1].float(), targets[:, 1:]
    value = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_NO_TARGET)
    return value, ((logits.argmax(-1) == targets) | (targets == _NO_TARGET)).all(-1)


@dataclass(frozen=True)
class Answer:
    """An answer in words, whose probability is the geometric mean of its tokens' probabilities."""

    text: str
    probability: float
    tokens: int


def answers_of(llm: Any, tokenizer: Any, output: Any, ends: int | Sequence[int]) -> list[Answer]:
    """Return the answers in `generate`'s output, each up to its first token in `ends`; after it comes padding.

    Raises AdaptError if a probability is not finite.
    """
    beams = getattr(output, "beam_indices", None)
    scores = llm.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=True)
    generated = output.sequences[:, -scores.shape[1] :]
    last = torch.isin(generated, torch.tensor(ends, device=generated.device)).long()
    ended = last.cumsum(-1) - last > 0
    lengths = (~ended).sum(-1)
    if scores[~ended].isnan().any():
        raise AdaptError(NOT_FINITE)
    means = scores.float().masked_fill(ended | ~scores.isfinite(), 0).sum(-1) / lengths
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [Answer(text.strip(), p, n) for text, p, n in zip(texts, means.exp().tolist(), lengths.tolist())]
