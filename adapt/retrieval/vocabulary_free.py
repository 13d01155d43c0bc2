"""Names that nobody listed: words out of the captions nearest to an image, scored against both.

Paper: Conti et al., Vocabulary-free Image Classification, NeurIPS 2023 (CaSED).
Reference: vic `e31087f`, `src/models/cased.py`, `components/retrieval.py`.
Deviations:
* The captions are those of the user's own index, and so may be few; search in them is exact, as faiss's flat one is.
* Candidates come in alphabetical order; the reference's order is that of a Python set. See `words` for the tagger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.errors import AdaptError
from adapt.methods.zero_shot import ZeroShot
from adapt.models.base import evaluating
from adapt.models.prediction import Prediction, Wanted, predictions
from adapt.models.wrap import wrap
from adapt.retrieval.index import Index
from adapt.retrieval.words import Tag, candidates

ALIKE = 0.94  # cosine of captions above which they say the same


@dataclass(frozen=True)
class Named:
    """The candidates for one image with their logits `(w,)`, and the captions that they came from."""

    words: tuple[str, ...]
    logits: Tensor
    captions: tuple[str, ...]


class VocabularyFree:
    """Names images by words of an index of captions; nothing trains.

    `captions` are fetched for an image, `alpha` is the share of the image itself in a word's score beside theirs,
    `least` how often a word must stand in them, and `template` the text of a word. Raises AdaptError for an index that
    is not of texts, or of another backbone, and for a share outside [0, 1].
    """

    def __init__(
        self,
        backbone: DualEncoder,
        index: Index,
        *,
        alpha: float = 0.7,
        captions: int = 10,
        least: int = 2,
        template: str = "{}",
        tag: Tag | None = None,
    ) -> None:
        if index.header.kind != "texts":
            raise AdaptError(
                "names come out of captions, and the index is of images: make one of texts by `adapt index`"
            )
        if captions < 1 or "{}" not in template:
            raise AdaptError(
                f"captions is {captions} and template {template!r}; expected 1 or more, and {{}} where the word goes"
            )
        if not 0 <= alpha <= 1:
            raise AdaptError(f"alpha is {alpha}; expected the image's share in a score, from 0 to 1")
        if index.header.adapter:
            raise AdaptError(
                "names are scored by the backbone alone, and the index was made under an adapter: make one without"
            )
        # for its features alone; no adapter says otherwise, and photographs are turned upright
        self.model = wrap(backbone.turning(True), ZeroShot(), ("object",))
        index.check(self.model)
        self.index, self.alpha, self.captions, self.least = index, alpha, captions, least
        self.template, self.tag = template, tag
        self._known: dict[str, Tensor] = {}  # features of words

    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64) -> list[Prediction]:
        """The most probable names of images, as a model's `predict` takes them."""
        return list(self.predict_stream(images, top_k, batch_size))

    def predict_stream(self, images: Any, top_k: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
        """As `predict`, one prediction at a time, holding one batch of images."""
        wanted = Wanted(top_k)
        for pixels in self.model.pixels_of(images, batch_size):
            with evaluating(self.model), torch.no_grad():
                features = self.model.image_features(pixels)
            for found in self.named(features):
                yield next(predictions(found.logits[None], found.words, wanted))

    def named(self, features: Tensor) -> list[Named]:
        """What images with unit-length `features` `(b, e)` may be called."""
        _, places = self.index.nearest(features.float().cpu(), self.captions)
        return [self._named(image, row) for image, row in zip(features.float().cpu(), places, strict=True)]

    def _named(self, image: Tensor, places: Tensor) -> Named:
        kept = places[different(self.index.features[places])]
        captions = tuple(self.index.entries[place] for place in kept)
        words = candidates([each.replace("_", " ") for each in captions], self.least, self.tag)
        of_words, of_captions = self._features(words), F.normalize(self.index.features[kept].mean(0), dim=-1)
        scale = self.model.backbone.logit_scale
        shares = [(scale * of_words @ each).softmax(-1) for each in (image, of_captions)]
        return Named(tuple(words), (self.alpha * shares[0] + (1 - self.alpha) * shares[1]).log(), captions)

    def _features(self, words: list[str]) -> Tensor:
        """Unit-length features of words `(w, e)`."""
        missing = [word for word in words if word not in self._known]
        if missing:
            encoded = self.model.text_features([self.template.replace("{}", word) for word in missing])
            self._known |= dict(zip(missing, encoded.float().cpu(), strict=True))
        return torch.stack([self._known[word] for word in words])


def different(features: Tensor) -> list[int]:
    """The places of captions `(k, e)`, the best ranked first, of which none says what one before it says.

    Captions that are alike, also by way of others between them, are one.
    """
    near = features @ features.T > ALIKE
    group = list(range(len(features)))
    for one in range(len(features)):
        for other in range(one):
            if near[one, other] and group[one] != group[other]:
                joined, gone = sorted((group[one], group[other]))
                group = [joined if each == gone else each for each in group]
    return sorted(set(group))  # a group is called by its first
