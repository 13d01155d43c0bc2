"""Inference on a list of items: from cached features, or from images that are decoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.progress import Progress
from adapt.data.bags import bag_mean, has_bags, largest, singles, sizes
from adapt.data.decoding.image_set import loader
from adapt.data.decoding.images import in_batches
from adapt.data.item import Item, kind_of
from adapt.methods.base import Encoded, Step
from adapt.methods.base.objective import Objective
from adapt.models.base import Adapted, evaluating
from adapt.models.features import (
    bag_features,
    encoded_images,
    item_features,
    keeps_bags,
    keeps_encoded,
    keeps_features,
    of_paths,
    of_texts,
    view_features,
)
from adapt.models.image_model import ImageModel
from adapt.models.prediction import decided, finite

Answer = TypeVar("Answer")
Decision = tuple[list[str], list[float]]  # the answer to each item of a batch, and its confidence

FEATURES = 1024  # cached features that are classified at once
FEATURES_PER_IMAGE = 32  # the same if every image has its own class features


@dataclass(frozen=True)
class Inference:
    """Inference settings: the number of decoding processes, the use of the feature cache, a progress callback.

    With `together`, all items are answered as one set, by a method that can.
    """

    workers: int = 2
    cache: bool = True
    progress: Progress | None = None
    together: bool = False

    def logits(self, model: Adapted, items: Sequence[Item]) -> Iterator[Tensor]:
        """Return an iterator over batches of logits `(b, n)` of `model` for the items, in the order of the items."""
        if self.together:
            return iter([self._together(model, items)])
        if model.answers.pooling == "logits" and has_bags(items):
            # each image of a bag is answered by itself, and their logits averaged
            answered = torch.cat([batch.cpu() for batch in self.logits(model, singles(items))])
            return iter([bag_mean(answered, torch.tensor(sizes(items)))])
        model = model.stream()
        if keeps_features(model, self.cache or of_texts(items)):
            return self._from_features(model, items)
        return self.of_batches(model, items, model.answered)

    def all_logits(self, model: Adapted, items: Sequence[Item]) -> Tensor:
        """Return the logits `(n, c)` of all items, on the CPU. Raises AdaptError if a logit is not finite."""
        return finite(torch.cat([batch.cpu() for batch in self.logits(model, items)]))

    def decisions(self, model: Adapted, items: Sequence[Item]) -> Iterator[Decision]:
        """Return an iterator over batches that give the most probable class of each item and its probability."""
        return self.decided(model, self.logits(model, items))

    def decided(self, model: Adapted, logits: Iterable[Tensor]) -> Iterator[Decision]:
        """Return an iterator over batches that give the most probable class of each logits row and its probability."""
        return (decided(batch, model.class_names) for batch in logits)

    def of_batches(self, model: Adapted, items: Sequence[Item], answer: Callable[[Any], Answer]) -> Iterator[Answer]:
        """Yield the result of `answer(step)` for each batch of items, in evaluation mode and without gradients."""
        for step in self.steps(model, items):
            with evaluating(model), torch.no_grad():  # batch by batch, so that other threads get their turn
                answered = answer(step)
            yield answered

    def steps(self, model: Adapted, items: Sequence[Item]) -> Iterator[Step]:
        """Yield the items in batches, each decoded into a `Step`, from which a method can compute logits."""
        task, done = cast("Objective", kind_of(items)), 0
        size = max(1, model.evaluated_together // (largest(items) * (1 + model.method.views)))
        for inputs, batch in self._batches(model, items, size):
            yield task.step(model, batch, inputs)
            done += len(batch)
            if self.progress is not None:
                self.progress(done, len(items))

    def _batches(self, model: Adapted, items: Sequence[Item], size: int) -> Iterator[tuple[object, list[Item]]]:
        """Yield the inputs and items of each batch: decoded images, or encoded images where the model reads those."""
        if keeps_encoded(model, self.cache):
            known = encoded_images(model, items, workers=self.workers, progress=None)
            if known is not None:
                yield from ((of_paths(batch, known), batch) for batch in in_batches(items, size))
                return
        yield from loader(items, model.transform(), size, train=False, workers=self.workers)

    def _together(self, model: Any, items: Sequence[Item]) -> Tensor:
        """Return the logits `(n, c)` of all items, answered as one set."""
        from adapt.models.answer import check_together, logits_together

        check_together(model)
        if model.answers.pooling == "logits" and has_bags(items):
            raise AdaptError("answers together pool the features of an item's images: train without pooling=logits")
        if keeps_features(model, self.cache or of_texts(items)) and not keeps_bags(model, items):
            known = item_features(model, items, workers=self.workers, progress=self.progress)
            features = model.projected(known.to(model.backbone.device))
        else:
            features = torch.cat([*self.of_batches(model, items, lambda step: step.features.cpu())])
        return logits_together(model, features)

    def _from_features(self, model: ImageModel, items: Sequence[Item]) -> Iterator[Tensor]:
        """Yield batches of logits, computed from features: of items, of each image of bags, or of random views too."""
        options: dict[str, Any] = {"workers": self.workers, "progress": self.progress}
        parts: Iterable[tuple[Any, ...]]
        logits: Callable[..., Tensor] = model.logits
        if model.method.views:
            shares = (view_features(model, some, **options) for some in in_batches(items, FEATURES))
            views = (part for own in shares for part in own.to(model.backbone.device).split(FEATURES_PER_IMAGE))
            parts = ((part[:, 0], part[:, 1:]) for part in views)
        elif keeps_bags(model, items):
            parts = ((bags,) for bags in in_batches(bag_features(model, items, **options), FEATURES_PER_IMAGE))
            logits = lambda bags: model.answered(model.step(Encoded.of_bags(bags)))  # noqa: E731
        else:
            features = item_features(model, items, **options).to(model.backbone.device)
            parts = ((part,) for part in features.split(FEATURES_PER_IMAGE if model.method.per_image else FEATURES))
        for part in parts:
            with evaluating(model), torch.no_grad():
                answered = logits(*part)
            yield answered
