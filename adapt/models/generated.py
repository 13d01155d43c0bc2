"""Answers in words, read from what transformers' `generate` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adapt.common.errors import AdaptError
from adapt.models.prediction import NOT_FINITE


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
