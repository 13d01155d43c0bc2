"""Where a training step's inputs come from: decoded images, or features that were computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from adapt.data.decoding.decoded import Decoded
from adapt.data.decoding.draws import Draw
from adapt.data.decoding.epochs import Epochs
from adapt.data.decoding.image_set import ImageSet
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.features import answers_of, block_inputs, item_features, keeps_features, of_texts
from adapt.methods.base import BlockInputs, Encoded
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.progress import Progress
from adapt.training.processes import ALONE, Processes
from adapt.training.settings import TrainSettings


class Batches(Protocol):
    """One epoch of inputs and labels, from any step of it.

    Where it is `divided` the inputs are one process's share of the images; labels, and texts, are of the whole batch.
    """

    divided: bool

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, step: int) -> Iterator[tuple[Any, Tensor]]:
        """Yields inputs and labels `(b,)`, or as `Step` has them, of the steps from `step` on."""


class ImageBatches:
    """Freshly decoded, freshly augmented images `(b, 3, h, w)`, with their questions where they have some."""

    def __init__(
        self,
        model: Adapted[Any],
        items: Sequence[Item],
        settings: TrainSettings,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self._items, self._answers = items, answers_of(items, len(model.class_names))
        self.divided = processes.count > 1
        transform = model.backbone.transform(train=settings.augment == "published")
        together = model.method.together if any(item.entity for item in items) else 1
        self._epochs = Shares(len(items), settings, seed, processes, [item.label for item in items], together)
        pinned = model.backbone.device.type == "cuda"
        images = ImageSet(items, transform, len(model.class_names))
        self._decoded = Decoded(images, self._epochs, settings.workers, pinned)

    def __len__(self) -> int:
        return len(self._epochs)

    def epoch(self, epoch: int, step: int) -> Iterator[tuple[Any, Tensor]]:
        self._epochs.epoch, self._epochs.step = epoch, step
        for (inputs, labels), draws in zip(self._decoded, self._epochs.whole()):
            if not self.divided:
                yield inputs, labels
                continue
            positions = [draw.position for draw in draws]
            if self._items[0].is_pair:
                pairs = [self._items[position] for position in positions]
                inputs = [inputs[0], [pair.text for pair in pairs], [pair.rephrased for pair in pairs]]
            yield inputs, self._answers[positions]


class Shares(Epochs):
    """One process's share of each batch of a training; `whole()` are the batches."""

    def __init__(
        self,
        size: int,
        settings: TrainSettings,
        seed: int,
        processes: Processes,
        labels: Sequence[int] = (),
        together: int = 1,
    ) -> None:
        drop_last = settings.drop_last and size >= settings.batch_size
        super().__init__(
            size, settings.batch_size, shuffle=True, seed=seed, drop_last=drop_last, labels=labels, together=together
        )
        self._processes = processes

    def whole(self) -> Iterator[list[Draw]]:
        return super().__iter__()

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self._processes.share, self.whole())


class KnownBatches:
    """What was computed once of `views` fixed views of each image `(n, views, ...)`: `inputs` makes a batch of it."""

    def __init__(
        self,
        known: Tensor,
        labels: Tensor,
        settings: TrainSettings,
        seed: int,
        inputs: Callable[[Tensor], Any],
        processes: Processes = ALONE,
    ) -> None:
        self._known, self._labels, self._inputs = known, labels, inputs
        self._epochs = Shares(len(labels), settings, seed, processes)
        self.divided = processes.count > 1

    def __len__(self) -> int:
        return len(self._epochs)

    def epoch(self, epoch: int, step: int) -> Iterator[tuple[Any, Tensor]]:
        self._epochs.epoch, self._epochs.step = epoch, step
        views = self._known.shape[1]
        for own, draws in zip(self._epochs, self._epochs.whole()):
            positions, view = ([draw.position for draw in own], [draw.seed % views for draw in own])
            yield self._inputs(self._known[positions, view]), self._labels[[draw.position for draw in draws]]


class FeatureBatches(KnownBatches):
    """Features `(b, e)` of a vision tower that nothing edits."""

    def __init__(self, features: Tensor, labels: Tensor, settings: TrainSettings, seed: int) -> None:
        features = features if features.ndim == 3 else features[:, None]  # (n, views, e)
        super().__init__(features, labels, settings, seed, Encoded)


class BlockBatches(KnownBatches):
    """What the first edited block of a vision tower reads `(b, l, d)`."""

    def __init__(
        self,
        block: int,
        tokens: Tensor,
        labels: Tensor,
        settings: TrainSettings,
        seed: int,
        processes: Processes = ALONE,
    ) -> None:
        self.block = block
        super().__init__(tokens[:, None], labels, settings, seed, partial(BlockInputs, block), processes)


def training_batches(
    model: Adapted[Any],
    items: Sequence[Item],
    settings: TrainSettings,
    seed: int,
    cache: bool,
    progress: Progress | None,
    processes: Processes = ALONE,
) -> Batches:
    """Features where no edit, question, fresh augmentation or switch stands against them.

    Where edits begin at a later block, what that reads, if there is room; images otherwise.
    """
    if settings.views is not None and not keeps_features(model, cache):
        raise AdaptError(
            "train.views are encoded once, by a vision tower that nothing edits and with the cache on: "
            f"{model.method.name} with these settings needs fresh images, so leave views out"
        )
    if of_texts(items):
        assert isinstance(model, AdaptedModel)  # as fit has it
        known = item_features(model, items, workers=0, views=settings.views or 0)
        return FeatureBatches(known, answers_of(items, len(model.class_names)), settings, seed)
    if items[0].is_pair:  # what is computed once of images has no texts
        if settings.views is not None:
            raise AdaptError(
                "train.views are of images alone, and the data are pairs of images and texts: leave it out"
            )
        return ImageBatches(model, items, settings, seed, processes)
    if keeps_features(model, cache) and (settings.augment == "none" or settings.views is not None):
        views = settings.views or 0
        features = item_features(model, items, workers=settings.workers, views=views, seed=seed, progress=progress)
        return FeatureBatches(features, answers_of(items, len(model.class_names)), settings, seed)
    if settings.augment == "none" and cache and isinstance(model, AdaptedModel) and "images" not in model.method.reads:
        block = model.unedited_blocks
        tokens = block_inputs(model, items, block, workers=settings.workers, progress=progress) if block else None
        if tokens is not None:
            answers = answers_of(items, len(model.class_names))
            return BlockBatches(block, tokens, answers, settings, seed, processes)
    return ImageBatches(model, items, settings, seed, processes)
