"""Decoding images in worker processes: batches come in a fixed order, and errors as they were raised."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, default_collate

from adapt.common.errors import AdaptError
from adapt.data.bags import Bags, joined
from adapt.data.decoding.draws import Draw, Epochs, seeded
from adapt.data.item import Item

if TYPE_CHECKING:
    from adapt.data.decoding.image_set import ImageSet, Pictures

# torch's messages if a worker's batch finds no shared memory
_NO_ROOM = re.compile(r"unable to (?:write|open|mmap|resize|allocate|map)\b.*|.*out of shared memory.*")


class Decoded:
    """An iterable of decoded batches, pairs of images (b, 3, h, w) and a list of items, in the order given by `draws`.

    If items have k images each, a batch has a list of k image tensors; of bags, it has `Bags`. Iterating raises
    AdaptError if a file cannot be decoded, in this process or in a worker, or if the machine has too little shared
    memory for the workers.

    The number of workers is at most the number of processors, and 0 in a process that cannot start workers, such as a
    joblib worker. With `pinned`, images are in page-locked memory, which allows asynchronous copies to CUDA.
    """

    def __init__(self, dataset: ImageSet, draws: Epochs | list[list[Draw]], workers: int, pinned: bool = False) -> None:
        self.dataset, self._pinned = dataset, pinned
        self._draws, self._workers = draws, min(workers, processors()) if _may_start_workers() else 0
        self._loader = self._new_loader()

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[tuple[object, list[Item]]]:
        complete = False
        try:
            for batch in self._loader:
                if isinstance(batch, AdaptError):
                    raise batch
                inputs, positions = batch
                yield inputs, [self.dataset.items[position] for position in positions.tolist()]
            complete = True
        except RuntimeError as error:
            no_room = _NO_ROOM.search(str(error))
            if no_room is None:
                raise
            raise AdaptError(
                f"a worker process cannot send images: {no_room[0]}. Free shared memory (/dev/shm), or set workers to 0"
            ) from error
        finally:
            if not complete:
                # Ends the workers now. Left to the garbage collector, with the error's frames, it takes 5 s for each.
                self._loader = self._new_loader()

    def _new_loader(self) -> DataLoader[object]:
        return DataLoader(
            _Drawn(self.dataset),  # type: ignore[arg-type]  # a map-style dataset by its methods
            batch_sampler=self._draws,
            num_workers=self._workers,
            collate_fn=_collate,
            pin_memory=self._pinned,
            persistent_workers=self._workers > 0,
            generator=torch.Generator(),  # or else each epoch would draw a number from the global one
        )


class Loader(Decoded):
    """The data loader that `adapt.data.loader` returns; each iteration yields the batches of the next epoch."""

    def __init__(self, dataset: ImageSet, epochs: Epochs, workers: int) -> None:
        super().__init__(dataset, epochs, workers)
        self.epochs = epochs

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Start the next iteration at batch `step` of `epoch`, without decoding earlier batches, to resume a run."""
        self.epochs.epoch, self.epochs.step = epoch, step

    def __iter__(self) -> Iterator[tuple[Any, list[Item]]]:
        yield from super().__iter__()
        self.set_epoch(self.epochs.epoch + 1)


class _Drawn:
    """The data set for torch's workers, which is indexed by `Draw`s and returns an AdaptError instead of raising it.

    If a worker raised the error, torch would wrap the error in a traceback of its own.
    """

    def __init__(self, dataset: ImageSet) -> None:
        self.dataset = dataset

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Pictures, int]] | AdaptError:
        drawn = []
        try:
            for draw in draws:
                with seeded(draw.seed):
                    drawn.append(self.dataset[draw.position])
        except AdaptError as error:
            return error
        return drawn


def _collate(batch: list[tuple[Pictures, int]] | AdaptError) -> object:
    if isinstance(batch, AdaptError):
        return batch
    positions = torch.tensor([position for _, position in batch], dtype=torch.long)
    if not batch or isinstance(batch[0][0], list):  # a share without items; images as decoded, of any sizes and number
        return [pictures for pictures, _ in batch], positions
    bags = [each for each, _ in batch if isinstance(each, Bags)]
    return (joined(bags), positions) if bags else default_collate(batch)


def _may_start_workers() -> bool:
    """Return whether this process can start data loading workers, which for example a daemon process cannot."""
    way = multiprocessing.get_start_method(allow_none=True)  # allow_none, so that asking does not set it
    return way in (None, *multiprocessing.get_all_start_methods()) and not multiprocessing.current_process().daemon


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
