"""Pseudo-words: an image as a word of the frozen text tower, which reads it in a text (composed retrieval).

Papers: Gu et al., Language-only Efficient Training of Zero-shot Composed Image Retrieval, CVPR 2024 (LinCIR), the
default; Saito et al., Pic2Word: Mapping Pictures to Words for Zero-shot Composed Image Retrieval, CVPR 2023.
Reference: lincir `1dec42d`, `models.py`, `train_phi.py`; composed_image_retrieval `8c05329`, `src/trainer.py`.
Deviations:
* Features are normalised before the map, so that one noise suits every backbone; the references map them as they are.
* TextBlob tags the words of captions in place of spaCy. A run is replaced where it stands, not wherever its letters
  occur, and captions without a run are left out, not given a random word.
* The learning rate falls by a cosine, without a warm-up. The weights of the last step are kept, and not averaged.
* Pic2Word's map is LinCIR's, which is SEARLE's; its own has ReLU and other widths. SEARLE's inversion is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from math import sqrt
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.common.errors import AdaptError, needing
from adapt.methods.base import ImageStep, Method, MethodConfig, Training, contrast
from adapt.methods.base.own_steps import minimise
from adapt.methods.base.traits import Composes, StandsAlone
from adapt.prompts import Prompt, around_word

if TYPE_CHECKING:
    from adapt.models.image_model import ImageModel

WORD = "*"  # where the image stands in a text
_WORDS = re.compile(r"\w+(?:[-']\w+)*|[^\w\s]")  # and marks by themselves
_NAMING = ("NN", "JJ", "CD")  # of Penn Treebank tags: nouns, adjectives, numerals


class PseudoWordConfig(MethodConfig):
    learns: Literal["captions", "images"] = "captions"
    """Learn the map from captions alone (LinCIR), or from images alone (Pic2Word)."""
    query: str = "a photo of * that {}"
    """The text of a query: * stands for the image, and {} for the words that change it."""
    prompt: str = "a photo of *"
    """The text that describes an image while the map learns from images."""
    hidden: int | None = Field(default=None, ge=1)
    """The width of the map's hidden layers; null means four times a feature's."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """The dropout behind both hidden layers."""
    noise: float | None = Field(default=None, ge=0)
    """Largest standard deviation of the noise on each value of a caption's unit-length feature; each caption draws a
    share of it. Null means 0.1 for 768 values, and the same total noise for fewer."""
    epochs: int = Field(default=10, ge=1)
    """The epochs over the captions or images."""
    batch_size: int = Field(default=512, ge=2)
    """The captions or images in a batch."""
    lr: float = Field(default=1e-4, gt=0)
    """The learning rate, which falls to 0 by a cosine."""

    @field_validator("query", "prompt")
    @classmethod
    def _has_its_places(cls, text: str, info: ValidationInfo) -> str:
        for mark, what in ((WORD, "the image"), ("{}", "the words")):
            if mark not in text and (mark == WORD or info.field_name == "query"):
                raise ValueError(f"{text!r} has no place for {what}; expected a text with {mark}")
        return text


class PseudoWord(Method[ImageStep], Composes, StandsAlone):
    """A perceptron `layers` from unit-length image features `(e,)` to a word embedding `(d,)` of the text tower."""

    name = "pseudo_word"
    title = "Pseudo-words by LinCIR (Gu et al., CVPR 2024) or Pic2Word (Saito et al., CVPR 2023)"
    Config = PseudoWordConfig
    tasks = frozenset({"images", "pairs"})
    takes_steps = False
    example = {"hidden": 8, "epochs": 2, "batch_size": 4}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        size, width = backbone.embed_dim, backbone.tower("text").width
        hidden, dropout = self.config.hidden or 4 * size, self.config.dropout
        layers: list[nn.Module] = [nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout)]
        layers += [nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)]
        self.layers = nn.Sequential(*layers).to(backbone.device)

    def words(self, features: Tensor) -> Tensor:
        """Return the word embeddings `(b, d)` of image or text features `(b, e)`."""
        weight = next(self.layers.parameters())
        words: Tensor = self.layers(F.normalize(features.to(weight), dim=-1))
        return words

    def composed(self, step: ImageStep, text: str) -> Tensor:
        parts = [part.replace("{}", text) for part in self.config.query.split(WORD)]
        prompt = around_word(step.model.backbone.tokenizer, parts)
        return step.model.encode_words([prompt] * len(step.features), self.words(step.features))

    def prepare(self, training: Training) -> None:
        model, items = training.classifier, training.items("train")
        device, tokenizer = model.backbone.device, model.backbone.tokenizer
        if self.config.learns == "captions":
            parts = {item.text: around_names(item.text) for item in items if item.text}
            texts = [text for text, own in parts.items() if len(own) > 1]
            prompts = [around_word(tokenizer, parts[text]) for text in texts]
            rows = model.text_features(texts, unit=False).float() if texts else torch.empty(0, device=device)
            noise = 0.1 * sqrt(768 / model.backbone.embed_dim) if self.config.noise is None else self.config.noise

            def loss(chosen: Tensor) -> Tensor:
                right = rows[chosen.to(device)]
                drawn = noise * torch.rand(len(right), 1, device=device) * torch.randn_like(right)
                words = self.words(F.normalize(right, dim=-1) + drawn)
                return rebuilding(model, [prompts[place] for place in chosen.tolist()], words, right)
        else:
            places = {item.paths: place for place, item in enumerate(items) if item.paths}.values()
            rows = training.features("train")[[*places]].to(device) if places else torch.empty(0, device=device)
            prompt = around_word(tokenizer, self.config.prompt.split(WORD))

            def loss(chosen: Tensor) -> Tensor:
                features = rows[chosen.to(device)]
                return matching(model, prompt, self.words(features), features)

        if len(rows) < 2:
            raise AdaptError(
                f"pseudo_word: the data has {len(rows)} different {self.config.learns} to learn from; expected two or "
                "more, and of captions those that name something: give more, or set method.learns"
            )
        self.layers.train()
        minimise(loss, self.parameters(), len(rows), self.config.epochs, self.config.batch_size, self.config.lr)


def rebuilding(model: ImageModel, prompts: Sequence[Prompt], words: Tensor, right: Tensor) -> Tensor:
    """Return LinCIR's loss: the squared error of captions with `words` `(b, d)` in them, to raw features `(b, e)`."""
    return F.mse_loss(model.encode_words(prompts, words).float(), right)


def matching(model: ImageModel, prompt: Prompt, words: Tensor, features: Tensor) -> Tensor:
    """Return Pic2Word's loss: the contrast of unit-length image `features` `(b, e)` with the prompt of each word."""
    found = F.normalize(model.encode_words([prompt] * len(words), words).float(), dim=-1)
    return contrast(model.backbone.logit_scale * features.float() @ found.T)


def around_names(caption: str) -> list[str]:
    """Return the parts of a caption around its runs of nouns, adjectives and numerals, which an image can stand for.

    Raises AdaptError if the library textblob is not installed.
    """
    with needing("Learning from captions", "the library textblob", "words"):
        from textblob.en import tag
    parts = [""]
    tagged = tag(" ".join(_WORDS.findall(caption)), tokenize=False)
    for names, run in groupby(tagged, lambda each: each[1][:2] in _NAMING):
        if names:
            parts.append("")
        else:
            parts[-1] = " ".join(word for word, _ in run)
    return parts
