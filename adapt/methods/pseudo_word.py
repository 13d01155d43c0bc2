"""Pseudo-words: an image as a word of the frozen text tower, which reads it in a text (composed retrieval).

Papers: Gu et al., Language-only Efficient Training of Zero-shot Composed Image Retrieval, CVPR 2024 (LinCIR), the
default; Saito et al., Pic2Word: Mapping Pictures to Words for Zero-shot Composed Image Retrieval, CVPR 2023; Baldrati
et al., Zero-Shot Composed Image Retrieval with Textual Inversion, ICCV 2023 (SEARLE).
Reference: lincir `1dec42d`, `models.py`, `train_phi.py`; composed_image_retrieval `8c05329`, `src/trainer.py`; SEARLE
`a9c314b`, `src/oti_inversion.py`, `src/train_phi.py`.
Deviations:
* Features are normalised before the map, so that one noise suits every backbone; the references map them as they are,
  as `unit: false` does.
* TextBlob tags words in place of spaCy. A run has numerals and no determiners, the reference's the reverse. It is
  replaced where it stands, not wherever its letters occur; captions without one are left out, not given a random word.
* The learning rate falls by a cosine, without a warm-up. The weights of the last step are kept, and not averaged.
* Pic2Word's map is LinCIR's, which is SEARLE's; its own is that of `activation: relu`, `hidden: 512`, `dropout: 0.1`.
* SEARLE's phrases are the 15 captions of the data nearest to the image, with their runs replaced as LinCIR's are; the
  reference has a language model's sentences about the nearest concepts. Its template is one, the setting `prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
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
_PHRASES = 15  # of an image
RowsLoss = Callable[[Tensor], Tensor]  # of the numbers of a batch's rows


class PseudoWordConfig(MethodConfig):
    learns: Literal["captions", "images", "inversions"] = "captions"
    """Learn the map from captions alone (LinCIR), from images alone (Pic2Word), or from a word that is first found for
    each image, beside captions (SEARLE)."""
    query: str = "a photo of * that {}"
    """The text of a query: * stands for the image, and {} for the words that change it."""
    prompt: str = "a photo of *"
    """The text that describes an image while the map learns from images, or while a word is found for each."""
    hidden: int | None = Field(default=None, ge=1)
    """The width of the map's hidden layers; null means four times a feature's."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """The dropout behind both hidden layers."""
    activation: Literal["gelu", "relu"] = "gelu"
    """The activation of both hidden layers."""
    unit: bool = True
    """Whether the map reads features of unit length, or of the length that the backbone gives them."""
    noise: float | None = Field(default=None, ge=0)
    """Largest standard deviation of the noise on each value of a caption's feature; each caption draws a share of it.
    Null means 1 or, for features of unit length, 0.1 for 768 values and the same total noise for fewer."""
    epochs: int = Field(default=10, ge=1)
    """The epochs over the captions or images."""
    batch_size: int = Field(default=512, ge=2)
    """The captions or images in a batch."""
    lr: float = Field(default=1e-4, gt=0)
    """The learning rate, which falls to 0 by a cosine."""
    inversion_steps: int = Field(default=350, ge=1)
    """The steps in which the word of an image is found, where inversions are learned."""

    @field_validator("query", "prompt")
    @classmethod
    def _has_its_places(cls, text: str, info: ValidationInfo) -> str:
        for mark, what in ((WORD, "the image"), ("{}", "the words")):
            if mark not in text and (mark == WORD or info.field_name == "query"):
                raise ValueError(f"{text!r} has no place for {what}; expected a text with {mark}")
        return text


class PseudoWord(Method[ImageStep], Composes, StandsAlone):
    """A perceptron `layers` from an image's features `(e,)` to a word embedding `(d,)` of the text tower."""

    name = "pseudo_word"
    title = "Pseudo-words by LinCIR (CVPR 2024), Pic2Word (CVPR 2023) or SEARLE (ICCV 2023)"
    Config = PseudoWordConfig
    tasks = frozenset({"images", "pairs"})
    takes_steps = False
    example = {"hidden": 8, "epochs": 2, "batch_size": 4}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        size, width = backbone.embed_dim, backbone.tower("text").width
        hidden, activation = self.config.hidden or 4 * size, {"gelu": nn.GELU, "relu": nn.ReLU}[self.config.activation]
        layers: list[nn.Module] = []
        for read in (size, hidden):
            layers += [nn.Linear(read, hidden), activation(), nn.Dropout(self.config.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, width)).to(backbone.device)

    def words(self, features: Tensor) -> Tensor:
        """Return the word embeddings `(b, d)` of image or text features `(b, e)`."""
        words: Tensor = self.layers(self._read(features.to(next(self.layers.parameters()))))
        return words

    def _read(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.config.unit else features

    def composed(self, step: ImageStep, text: str) -> Tensor:
        parts = [part.replace("{}", text) for part in self.config.query.split(WORD)]
        prompt = around_word(step.model.backbone.tokenizer, parts)
        words = self.words(step.model.image_features(step.images, unit=False))
        return step.model.encode_words([prompt] * len(words), words)

    def prepare(self, training: Training) -> None:
        losses = {"captions": self._loss_of_captions, "images": self._loss_of_images, "inversions": self._loss_of_words}
        rows, loss = losses[self.config.learns](training)
        self.layers.train()
        minimise(loss, self.parameters(), rows, self.config.epochs, self.config.batch_size, self.config.lr)

    def _loss_of_captions(self, training: Training) -> tuple[int, RowsLoss]:
        """Return LinCIR's number of captions and its loss."""
        model, (prompts, rows) = training.classifier, self._captions(training)
        usual = 0.1 * sqrt(768 / model.backbone.embed_dim) if self.config.unit else 1.0
        noise = usual if self.config.noise is None else self.config.noise

        def loss(chosen: Tensor) -> Tensor:
            right = rows[chosen]
            drawn = noise * torch.rand(len(right), 1, device=right.device) * torch.randn_like(right)
            words = self.words(self._read(right) + drawn)
            return rebuilding(model, [prompts[place] for place in chosen.tolist()], words, right)

        return len(rows), loss

    def _loss_of_images(self, training: Training) -> tuple[int, RowsLoss]:
        """Return Pic2Word's number of images and its loss."""
        model, rows, prompt = training.classifier, self._images(training), self._prompt(training)

        def loss(chosen: Tensor) -> Tensor:
            return matching(model, prompt, self.words(rows[chosen]), rows[chosen])

        return len(rows), loss

    def _loss_of_words(self, training: Training) -> tuple[int, RowsLoss]:
        """Return SEARLE's number of images and the loss of its map, after a word has been found for each image."""
        model, rows, prompt = training.classifier, self._images(training), self._prompt(training)
        prompts, captions = self._captions(training)
        unit, most = F.normalize(captions, dim=-1), min(_PHRASES, len(captions))
        nearest = torch.cat([(part @ unit.T).topk(most)[1] for part in rows.split(self.config.batch_size)])

        def of_phrases(words: Tensor, chosen: Tensor) -> Tensor:
            """Return how far captions near each image are from what they say with its word in them."""
            places = nearest[chosen].gather(1, torch.randint(nearest.shape[1], (len(chosen), 1)).to(nearest))[:, 0]
            return apart(model, [prompts[place] for place in places.tolist()], words, captions[places])

        def of_words(words: Tensor, chosen: Tensor) -> Tensor:
            shown = apart(model, [prompt] * len(words), words, rows[chosen])
            return inversion(shown, of_phrases(words, chosen))

        found = list[Tensor]()
        for chosen in torch.arange(len(rows)).split(self.config.batch_size):
            start = 0.02 * torch.randn(len(chosen), model.backbone.tower("text").width).to(rows)
            found.append(inverted(start, partial(of_words, chosen=chosen), self.config.inversion_steps))
        targets = torch.cat(found)

        def loss(chosen: Tensor) -> Tensor:
            words = self.words(rows[chosen])
            return distilling(words, targets[chosen]) + 0.75 * of_phrases(words, chosen)

        return len(rows), loss

    def _prompt(self, training: Training) -> Prompt:
        return around_word(training.classifier.backbone.tokenizer, self.config.prompt.split(WORD))

    def _images(self, training: Training) -> Tensor:
        """Return the features `(n, e)` of the training images that the map reads, each once.

        Raises AdaptError for fewer than two.
        """
        items = training.items("train")
        places = {item.paths: place for place, item in enumerate(items) if item.paths}.values()
        rows = training.features("train", unit=self.config.unit)[[*places]] if places else torch.empty(0)
        return _enough(rows.to(training.classifier.backbone.device), "images")

    def _captions(self, training: Training) -> tuple[list[Prompt], Tensor]:
        """Return the training captions that name something as prompts around the word, and their raw features `(n, e)`.

        Raises AdaptError for fewer than two.
        """
        model = training.classifier
        parts = {item.text: around_names(item.text) for item in training.items("train") if item.text}
        texts = [text for text, own in parts.items() if len(own) > 1]
        rows = model.text_features(texts, unit=False).float() if texts else torch.empty(0)
        return [around_word(model.backbone.tokenizer, parts[text]) for text in texts], _enough(rows, "captions")


def _enough(rows: Tensor, what: str) -> Tensor:
    if len(rows) < 2:
        raise AdaptError(
            f"pseudo_word: the data has {len(rows)} different {what} to learn from; expected two or more, and of "
            "captions those that name something: give more, or set method.learns"
        )
    return rows


def rebuilding(model: ImageModel, prompts: Sequence[Prompt], words: Tensor, right: Tensor) -> Tensor:
    """Return LinCIR's loss: the squared error of captions with `words` `(b, d)` in them, to raw features `(b, e)`."""
    return F.mse_loss(model.encode_words(prompts, words).float(), right)


def matching(model: ImageModel, prompt: Prompt, words: Tensor, features: Tensor) -> Tensor:
    """Return Pic2Word's loss: the contrast of image `features` `(b, e)` with the prompt of each word."""
    found = F.normalize(model.encode_words([prompt] * len(words), words).float(), dim=-1)
    return contrast(model.backbone.logit_scale * F.normalize(features.float(), dim=-1) @ found.T)


def apart(model: ImageModel, prompts: Sequence[Prompt], words: Tensor, features: Tensor) -> Tensor:
    """Return the mean of 1 - cosine of prompts with `words` `(b, d)` in them to `features` `(b, e)`."""
    return 1 - F.cosine_similarity(model.encode_words(prompts, words).float(), features.float()).mean()


def inversion(of_images: Tensor, of_phrases: Tensor) -> Tensor:
    """Return SEARLE's loss of words that are found for images, from how far both kinds of texts are apart."""
    return (of_images + 0.5 * of_phrases) / 1.5


def inverted(start: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Return words `(b, d)` of small `loss`: a moving average over AdamW's steps, which begins at the `start`."""
    words, average = nn.Parameter(start.clone()), start.clone()
    optimizer = torch.optim.AdamW([words], lr=0.02, weight_decay=0.01)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss(words).backward()
            optimizer.step()
            average.lerp_(words.detach(), 0.01)
    return average


def distilling(words: Tensor, targets: Tensor, temperature: float = 0.25) -> Tensor:
    """Return SEARLE's contrast of `words` `(b, d)` with `targets` `(b, d)` among all of both but oneself."""
    both = F.normalize(torch.cat([words, targets]), dim=-1)
    logits = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(both), device=both.device).roll(len(words)))


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
