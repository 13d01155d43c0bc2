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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.common.errors import AdaptError
from adapt.methods.zero_shot import ZeroShot
from adapt.models.base import evaluating
from adapt.models.prediction import Prediction, Query, predictions
from adapt.models.wrap import wrap
from adapt.retrieval.index import Index
from adapt.retrieval.words import Tag, candidates

ALIKE = 0.94  # cosine above which captions count as the same


@dataclass(frozen=True)
class Named:
    """The candidate names for one image, their logits `(w,)`, and the captions from which the names were taken."""

    words: tuple[str, ...]
    logits: Tensor
    captions: tuple[str, ...]


class VocabularyFree:
    """A training-free classifier that names images with words from an index of captions.

    For each image, the `captions` nearest captions are retrieved. Words that occur at least `least` times in these
    captions are candidates, and are encoded in `template`. The score of a word is the mean of its probabilities given
    the image (weight `alpha`) and given the captions (weight `1 - alpha`). Raises AdaptError if the index does not
    contain texts, if the index was made with another backbone, with an adapter or with shortened features, or if
    `alpha` is not in [0, 1].
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
                f"the index contains {index.header.kind}, but captions are required: index texts with `adapt index`"
            )
        if captions < 1 or "{}" not in template:
            raise AdaptError(
                f"captions is {captions} and template is {template!r}; expected 1 or more, and a text with {{}}"
            )
        if not 0 <= alpha <= 1:
            raise AdaptError(f"alpha is {alpha}; expected a number from 0 to 1, the weight of the image in the scores")
        if index.header.adapter:
            raise AdaptError("the index was made with an adapter: make a new index without an adapter")
        if index.header.dim is not None:
            raise AdaptError(
                f"the index has only the first {index.header.dim} values of each feature: make a new index without "
                "--dim"
            )
        # only for its features, of photographs turned upright
        self.model = wrap(backbone.turning(True), ZeroShot(), ("object",))
        index.check(self.model)
        self.index, self.alpha, self.captions, self.least = index, alpha, captions, least
        self.template, self.tag = template, tag
        self._known: dict[str, Tensor] = {}  # features of words

    def predict(self, images: object, top_k: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Return the most probable names of each image; `images` has any type that a model's `predict` accepts."""
        return list(self.predict_stream(images, top_k, batch_size))

    def predict_stream(self, images: object, top_k: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
        """Yield the same predictions as `predict` one by one, with only one batch of images in memory at a time."""
        query = Query(top_k)
        for pixels in self.model.pixels_of(images, batch_size):
            with evaluating(self.model), torch.no_grad():
                features = self.model.image_features(pixels)
            for names in self.named(features):
                yield next(predictions(names.logits[None], names.words, query))

    def named(self, features: Tensor) -> list[Named]:
        """Return the candidate names of each image, with logits, from the images' unit-length `features` `(b, e)`."""
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
        """Return the unit-length text features `(w, e)` of `words`, each inserted into the template."""
        missing = [word for word in words if word not in self._known]
        if missing:
            encoded = self.model.text_features([self.template.replace("{}", word) for word in missing])
            self._known |= dict(zip(missing, encoded.float().cpu(), strict=True))
        return torch.stack([self._known[word] for word in words])


def different(features: Tensor) -> list[int]:
    """Return the indices of the ranked captions without near-duplicates, given the captions' `features` `(k, e)`.

    Captions that are similar, even if only through other captions, form a group, of which only the first is returned.
    """
    from scipy.sparse.csgraph import connected_components

    near = (features @ features.T > ALIKE).numpy()
    _, group = connected_components(near, directed=False)
    return sorted(np.unique(group, return_index=True)[1].tolist())
