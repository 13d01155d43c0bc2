"""Inputs of training steps: decoded images, or features that were computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from adapt import tasks
from adapt.common.errors import AdaptError
from adapt.common.progress import Progress
from adapt.data.bags import has_bags
from adapt.data.decoding.decoded import Decoded
from adapt.data.decoding.draws import Draw, Epochs
from adapt.data.decoding.image_set import ImageSet
from adapt.data.item import Item
from adapt.methods.base import BlockInputs, Encoded, trait
from adapt.methods.base.traits import GroupsEntities
from adapt.models.base import Adapted, is_native
from adapt.models.features import (
    bag_features,
    block_inputs,
    encoded_images,
    item_features,
    keeps_bags,
    keeps_encoded,
    keeps_features,
    of_paths,
    of_texts,
)
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import TrainSettings
from adapt.training.processes import ALONE, Processes


class Shares(Epochs):
    """An epoch sampler that yields one process's fraction of each training batch.

    `learned()` yields the batches whose loss the process computes, which are full unless they are divided by items.
    `order` are the settings of `Epochs` by which items come together.
    """

    def __init__(self, size: int, settings: TrainSettings, seed: int, processes: Processes, **order: Any) -> None:
        drop_last = settings.drop_last and size >= settings.batch_size
        super().__init__(size, settings.batch_size, shuffle=True, seed=seed, drop_last=drop_last, **order)
        self._processes = processes

    def learned(self) -> Iterator[list[Draw]]:
        return iter(self) if self._processes.by_items else super().__iter__()

    def __iter__(self) -> Iterator[list[Draw]]:
        processes = self._processes
        return map(processes.own if processes.by_items else processes.share, super().__iter__())


class Batches(ABC):
    """The batches of a training run, with inputs and `items`, which can be iterated from any step of any epoch.

    If several processes train together and features are `gathered`, the inputs are from this process's share of the
    images, and the items are those of the full batch. If they divide batches by items, both are this process's own, and
    there may be none.
    """

    def __init__(self, items: Sequence[Item], draws: Shares, processes: Processes) -> None:
        self.items, self._draws = items, draws
        self.gathered = processes.count > 1 and not processes.by_items

    def __len__(self) -> int:
        return len(self._draws)

    def epoch(self, epoch: int, step: int) -> Iterator[tuple[object, list[Item]]]:
        """Yield the inputs and items of each batch of `epoch`, starting with the batch at index `step`."""
        self._draws.epoch, self._draws.step = epoch, step
        for inputs, draws in zip(self._inputs(), self._draws.learned()):
            yield inputs, [self.items[draw.position] for draw in draws]

    @abstractmethod
    def _inputs(self) -> Iterator[object]:
        """Return an iterator over the inputs of the batches that are left in the epoch."""


class ImageBatches(Batches):
    """Batches of images `(b, 3, h, w)`, which are decoded and augmented again in every epoch."""

    def __init__(
        self,
        model: Adapted,
        items: Sequence[Item],
        settings: TrainSettings,
        seed: int,
        processes: Processes = ALONE,
        lengths: Sequence[int] = (),
    ) -> None:
        transform = model.backbone.transform(train=settings.augment == "published")
        entities, together = [item.kept_with for item in items], 1  # items of an entity in one batch
        groups = trait(model.method, GroupsEntities)
        if groups and tasks.of(items).keeps_entities_together and any(item.unit for item in items):
            together = groups.together
        order = {"entities": entities, "together": together, "lengths": lengths}
        super().__init__(items, Shares(len(items), settings, seed, processes, **order), processes)
        pinned = model.backbone.device.type == "cuda"
        self._decoded = Decoded(ImageSet(items, transform), self._draws, settings.workers, pinned)

    def _inputs(self) -> Iterator[object]:
        return (inputs for inputs, _ in self._decoded)


class KnownBatches(Batches):
    """Batches of precomputed inputs, which the function `inputs` returns for the images, and views, that are drawn.

    They are features, or what enters the vision block `block`.
    """

    def __init__(
        self,
        inputs: Callable[[Sequence[Draw]], object],
        items: Sequence[Item],
        settings: TrainSettings,
        seed: int,
        processes: Processes = ALONE,
        lengths: Sequence[int] = (),
        block: int | None = None,
    ) -> None:
        super().__init__(items, Shares(len(items), settings, seed, processes, lengths=lengths), processes)
        self._known, self.block = inputs, block

    def _inputs(self) -> Iterator[object]:
        return map(self._known, self._draws)


def of_views(features: Tensor) -> Callable[[Sequence[Draw]], Encoded]:
    """Return a function from draws to their features `(b, e)`, from all features `(n, e)` or `(n, views, e)`."""
    views = features if features.ndim == 3 else features[:, None]

    def drawn(draws: Sequence[Draw]) -> Encoded:
        return Encoded(views[[draw.position for draw in draws], [draw.seed % views.shape[1] for draw in draws]])

    return drawn


def training_batches(
    model: Adapted,
    items: Sequence[Item],
    settings: TrainSettings,
    seed: int,
    cache: bool,
    progress: Progress | None,
    processes: Processes = ALONE,
) -> Batches:
    """Return training batches of the kind that needs the least computation in each step.

    The batches contain features if the vision tower is unedited, the task can learn from features, images are not
    augmented again in every epoch, and the cache is on. For a native vision-language model, they contain encoded images
    if the method edits only the decoder. Otherwise, the batches contain the inputs of the first edited
    block, if the earlier blocks are unedited and these inputs fit into memory. In all other cases, the batches contain
    images. Raises AdaptError if `views` is set and features cannot be used.
    """
    if settings.views is not None and not keeps_features(model, cache):
        raise AdaptError(
            f"train.views needs the feature cache and an unedited vision tower, but {model.method.name} with these "
            "settings encodes images in every step: leave out train.views"
        )
    if of_texts(items):
        assert isinstance(model, ImageModel)  # fit has checked
        features = item_features(model, items, workers=0, views=settings.views or 0)
        return KnownBatches(of_views(features), items, settings, seed)
    lengths = model.lengths(items) if settings.group_by_length and is_native(model) else ()
    if keeps_encoded(model, cache):
        known = encoded_images(model, items, workers=settings.workers, progress=progress)
        if known is not None:
            encoded = of_paths(items, known)
            return KnownBatches(
                lambda draws: [encoded[draw.position] for draw in draws], items, settings, seed, processes, lengths
            )
    task = tasks.of(items)
    if not task.learns_from_features:
        if settings.views is not None:
            raise AdaptError(f"train.views needs images only, but the data are {task.items_are}: leave out train.views")
        return ImageBatches(model, items, settings, seed, processes, lengths)
    if keeps_features(model, cache) and settings.fixed_views:
        views = settings.views or 0
        if keeps_bags(model, items):
            if views:
                raise AdaptError(f"{model.method.name} weighs the images of an item as they are: leave out train.views")
            bags = bag_features(model, items, workers=settings.workers, progress=progress)
            return KnownBatches(
                lambda draws: Encoded.of_bags([bags[draw.position] for draw in draws]), items, settings, seed
            )
        features = item_features(model, items, workers=settings.workers, views=views, progress=progress)
        return KnownBatches(of_views(features), items, settings, seed)
    reads_images = "images" in model.method.reads or trait(model.method, GroupsEntities)  # which orders images itself
    if settings.augment == "none" and cache and isinstance(model, ImageModel) and not (reads_images or has_bags(items)):
        block = model.unedited_blocks
        tokens = block_inputs(model, items, block, workers=settings.workers, progress=progress) if block else None
        if tokens is not None:
            return KnownBatches(
                lambda draws: BlockInputs(block, tokens[[draw.position for draw in draws]]), items, settings, seed,
                processes, block=block,
            )  # fmt: skip
    return ImageBatches(model, items, settings, seed, processes, lengths)
