"""SVLC: LoRA on pairs of images and captions, with hard negatives that replace a word of a caption by another.

Paper: Doveh et al., Teaching Structured Vision and Language Concepts to Vision and Language Models, CVPR 2023 (SVLC).
Reference: TSVLC `90b18e7`, `training/loss.py`, `training/negs_and_pos.py`, `open_clip/model.py`.
Deviations:
* Only complete words are replaced; the reference finds kinds of words by parts of words ("red" in "covered"), and
  replaces every part of a word.
* The lists of words are our own. Negatives by a language model are left out, and paraphrases come from the user.
* Several negatives of a caption are drawn one by one, each with its kind of word, and equal ones count once; the
  reference's are of one kind.
* The divergence over a whole batch (`common_batch_pos`), which no published run uses, is left out.
* LoRA is CLIP-LoRA's (see `lora`): q, k, v, out and both layers of the MLP have factors of their own, output factors
  start at zero, the scale is alpha / sqrt(rank), and the patch projection has no LoRA.
* Random draws are torch's, from the run's seed; the reference's depend on Python's hash seed.

A negative is called a twin here, in the settings and in the loss.
"""

from __future__ import annotations

import logging
import re
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from adapt.common.shown import brief
from adapt.methods.base import PairStep, Terms, Training, contrast
from adapt.methods.lora import LoRA, PlainLoRAConfig, Projections

logger = logging.getLogger("adapt")

WORDS: dict[str, tuple[str, ...]] = {
    "side": ("left", "right"),
    "place": ("above", "below", "inside", "outside", "behind", "before", "under", "over"),
    "number": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "colour": ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey"),
    "size": ("big", "small", "large", "tiny", "tall", "short", "long", "wide", "narrow", "huge"),
    "material": ("wooden", "metal", "plastic", "glass", "stone", "leather", "paper", "cotton", "brick"),
    "state": ("open", "closed", "full", "empty", "wet", "dry", "old", "new", "broken", "clean", "dirty", "hot", "cold"),
    "action": ("standing", "sitting", "walking", "running", "eating", "sleeping", "holding", "looking", "flying"),
}  # words by kind: in a caption, each makes another word of its kind wrong


class SVLCConfig(PlainLoRAConfig):
    projections: Projections = ("q", "k", "v", "out", "fc1", "fc2")
    """Names, a string of the letters q k v o, or all that each tower has."""
    words: dict[str, tuple[str, ...]] = Field(default=WORDS)
    """Words by kind; a word of a caption is replaced by another of its kind."""
    negative_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss between a caption and its negative."""
    negatives: int = Field(default=1, ge=1)
    """The number of negatives that are drawn for each caption in a step (`num_negs`)."""
    twins_for_all: bool = True
    """Whether each negative is also wrong for every image of the batch (the opposite of `no_neg_in_contrastive`)."""
    symmetric: bool = False
    """Whether paraphrases also retrieve their images and captions, beside being retrieved by them."""
    even_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence from an image that is as near its paraphrase as its caption; 0.1 in `kl_pos`."""

    @field_validator("words")
    @classmethod
    def _two_or_more(cls, words: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        words = {kind: tuple(word.lower() for word in listed) for kind, listed in words.items()}
        for kind, listed in words.items():
            if len(set(listed)) < 2 or not all(re.fullmatch(r"\w+", word) for word in listed):
                raise ValueError(f"words of the kind {kind!r} are {listed}; expected different single words, 2 or more")
        return words


class SVLC(LoRA[PairStep]):
    """LoRA trained on image-caption pairs with altered captions as hard negatives; for labelled images, plain LoRA."""

    name = "svlc"
    title = "SVLC (Doveh et al., CVPR 2023)"
    serves = ("dual encoder",)
    Config = SVLCConfig
    learns_any_step = True
    tasks = LoRA.tasks - {"translations"}  # which its loss does not read
    example = {"projections": "qkvo"}

    def prepare(self, training: Training) -> None:
        super().prepare(training)
        texts = [item.text for item in training.items("train") if item.paths and item.text]
        if texts and not any(map(self._listed_words, texts)):
            logger.warning(
                "svlc: none of the %s training captions, such as %s, contains a word listed in method.words, so no "
                "hard negatives can be made and svlc trains as lora does: set method.words to words in the captions",
                f"{len(texts):,}", brief(texts[0]),
            )  # fmt: skip

    def loss(self, step: Any) -> Terms:
        if not isinstance(step, PairStep):
            return super().loss(step)
        drawn = [[self.twin(text) for _ in range(self.config.negatives)] for text in step.texts]
        twins = [(place, twin) for place, own in enumerate(drawn) for twin in dict.fromkeys(filter(None, own))]
        right = [other or text for other, text in zip(step.rephrased, step.texts)] if any(step.rephrased) else []
        every = step.model.encode_texts([*step.texts, *(twin for _, twin in twins), *right])
        texts, wrong, rephrased = every.split([len(step.texts), len(twins), len(right)])
        step.text_features = texts  # stored for later use
        logits, others = step.without_same(step.cosine_logits(texts)), step.cosine_logits(wrong)
        terms = {"cross_entropy": contrast(logits, others if self.config.twins_for_all else None)}
        if twins:
            of = torch.tensor([place for place, _ in twins], device=others.device)
            own = others.masked_fill(of != torch.arange(len(texts), device=of.device)[:, None], -torch.inf)
            among = torch.cat([logits.diagonal()[:, None], own], dim=-1)[of.unique()].float()
            terms["twins"] = self.config.negative_weight * -among.log_softmax(-1)[:, 0].mean()
        if right:
            of_images, of_texts = (step.cosine_logits(rephrased, features) for features in (step.features, texts))
            masked = step.without_same(of_images), step.without_same(of_texts)
            terms["rephrased"] = in_other_words(*masked, symmetric=self.config.symmetric)
            if self.config.even_weight:
                both = torch.stack([logits.diagonal(), of_images.diagonal()], dim=-1).float().log_softmax(-1)
                terms["even"] = self.config.even_weight * -(both.mean(-1) + log(2)).mean()
        return terms

    def twin(self, text: str) -> str | None:
        """Return a caption with one listed word replaced by another word of its kind, or None if no word is listed."""
        matches = self._listed_words(text)
        if not matches:
            return None
        kinds = list(dict.fromkeys(kind for kind, _ in matches))
        kind = kinds[_drawn(len(kinds))]
        places = [match for other, match in matches if other == kind]
        match = places[_drawn(len(places))]
        present = {each.group().lower() for each in places}
        others = [word for word in self.config.words[kind] if word not in present] or [
            word for word in self.config.words[kind] if word != match.group().lower()
        ]
        return text[: match.start()] + others[_drawn(len(others))] + text[match.end() :]

    def _listed_words(self, text: str) -> list[tuple[str, re.Match[str]]]:
        """Return the words of a caption that the setting `words` lists, as pairs of kind, such as colour, and match."""
        return [
            (kind, match)
            for kind, listed in self.config.words.items()
            for match in re.finditer(rf"\b(?:{'|'.join(map(re.escape, listed))})\b", text, flags=re.IGNORECASE)
        ]


def in_other_words(of_images: Tensor, of_texts: Tensor, symmetric: bool = False) -> Tensor:
    """Return the mean of the image-to-paraphrase and caption-to-paraphrase cross-entropies, for logits `(b, b)`.

    Matching pairs are on the diagonals. With `symmetric`, both directions of retrieval are averaged.
    """
    if symmetric:
        return (contrast(of_images) + contrast(of_texts)) / 2
    right = torch.arange(len(of_images), device=of_images.device)
    return (F.cross_entropy(of_images.float(), right) + F.cross_entropy(of_texts.float(), right)) / 2


def _drawn(count: int) -> int:
    return int(torch.randint(count, ()))
