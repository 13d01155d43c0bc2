"""Vocabulary-free classification: words from the captions nearest to an image, scored by the image and captions.

Paper: Conti et al., Vocabulary-free Image Classification, NeurIPS 2023 (CaSED).
Reference: vic `e31087f`, `src/models/cased.py`, `components/retrieval.py`.
Deviations:
* The captions come from the user's own index, and may be few; the search is exact, like faiss's flat index.
* Candidates are in alphabetical order; the reference has the order of a Python set. See `words` for the tagger.
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

ALIKE = 0.94  # cosine above which captions count as the same


@dataclass(frozen=True)
class Named:
    """The candidate names of one image with their logits `(w,)`, and the captions that the names come from."""

    words: tuple[str, ...]
    logits: Tensor
    captions: tuple[str, ...]


class VocabularyFree:
    """A classifier that names images by words from an index of captions, without training.

    For each image `captions` captions are retrieved. In the score of a word, the image has the weight `alpha`, and the
    captions have the rest. A word must occur `least` times in the captions; `template` is the text that is encoded for
    it. Raises AdaptError if the index does not hold texts, if it was made with another backbone or an adapter, and for
    an `alpha` outside [0, 1].
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
                f"the index holds {index.header.kind}; names come from captions: index texts with `adapt index`"
            )
        if captions < 1 or "{}" not in template:
            raise AdaptError(
                f"captions is {captions}, expected 1 or more; or template is {template!r}, expected a text with {{}}"
            )
        if not 0 <= alpha <= 1:
            raise AdaptError(f"alpha is {alpha}; expected the weight of the image, from 0 to 1")
        if index.header.adapter:
            raise AdaptError("the index was made with an adapter; names are scored without one: make an index without")
        # only for its features, of photographs turned upright
        self.model = wrap(backbone.turning(True), ZeroShot(), ("object",))
        index.check(self.model)
        self.index, self.alpha, self.captions, self.least = index, alpha, captions, least
        self.template, self.tag = template, tag
        self._known: dict[str, Tensor] = {}  # features of words

    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Return the most probable names of images, which may have any form that a model's `predict` accepts."""
        return list(self.predict_stream(images, top_k, batch_size))

    def predict_stream(self, images: Any, top_k: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
        """Yield the predictions that `predict` returns one by one; only one batch of images is in memory."""
        wanted = Wanted(top_k)
        for pixels in self.model.pixels_of(images, batch_size):
            with evaluating(self.model), torch.no_grad():
                features = self.model.image_features(pixels)
            for names in self.named(features):
                yield next(predictions(names.logits[None], names.words, wanted))

    def named(self, features: Tensor) -> list[Named]:
        """Return the candidate names of each image, given the images' unit-length `features` `(b, e)`."""
        _, places = self.index.nearest(features.float().cpu(), self.captions)
        return [self._named(image, row) for image, row in zip(features.float().cpu(), places, strict=True)]

    def _named(self, image: Tensor, places: Tensor) -> Named:
        distinct = places[different(self.index.features[places])]
        captions = tuple(self.index.entries[place] for place in distinct)
        words = candidates([each.replace("_", " ") for each in captions], self.least, self.tag)
        of_words, of_captions = self._features(words), F.normalize(self.index.features[distinct].mean(0), dim=-1)
        scale = self.model.backbone.logit_scale
        shares = [(scale * of_words @ each).softmax(-1) for each in (image, of_captions)]
        return Named(tuple(words), (self.alpha * shares[0] + (1 - self.alpha) * shares[1]).log(), captions)

    def _features(self, words: list[str]) -> Tensor:
        """Return the unit-length features `(w, e)` of `words` in the template."""
        missing = [word for word in words if word not in self._known]
        if missing:
            encoded = self.model.text_features([self.template.replace("{}", word) for word in missing])
            self._known |= dict(zip(missing, encoded.float().cpu(), strict=True))
        return torch.stack([self._known[word] for word in words])


def different(features: Tensor) -> list[int]:
    """Return the indices of the ranked captions, with `features` `(k, e)`, that do not repeat an earlier caption.

    Captions that are alike, directly or through other captions, form a group; the first of each group is kept.
    """
    near = features @ features.T > ALIKE
    group = list(range(len(features)))
    for one in range(len(features)):
        for other in range(one):
            if near[one, other] and group[one] != group[other]:
                joined, gone = sorted((group[one], group[other]))
                group = [joined if each == gone else each for each in group]
    return sorted(set(group))  # a group has the number of its first caption
