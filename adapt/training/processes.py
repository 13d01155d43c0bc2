"""One training by several processes, each of which encodes its share of every batch's images.

Features are gathered, so that each process sees the whole batch and its loss is that of one process alone, whatever it
compares: classes, texts, or the images of a batch with each other. What no image changes, such as the features of the
classes, each process computes for itself. Accelerate sets the processes up, under its own `launch`, torchrun or
`adapt train --processes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adapt import plain
from adapt.data.item import Item
from adapt.devices import is_launched
from adapt.errors import AdaptError
from adapt.features import keeps_features, of_texts
from adapt.methods.base import Method
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.training.settings import TrainSettings

PATIENCE = timedelta(days=7)  # with a main process that evaluates: those that fail are ended by what launched them
Each = TypeVar("Each")


@dataclass(frozen=True)
class Processes:
    """This process's `number` among the `count` of a training; the first is the main one, which writes files."""

    count: int = 1
    number: int = 0
    device: torch.device | str = "cpu"

    @property
    def main(self) -> bool:
        return self.number == 0

    def share(self, draws: Sequence[Each]) -> list[Each]:
        """This process's part of a batch: as many for each, some again where they do not divide."""
        each = -(-len(draws) // self.count)
        return list(islice(cycle(draws), self.number * each, (self.number + 1) * each))

    def whole(self, own: Tensor, size: int) -> Tensor:
        """The rows `(size, ...)` of a batch, of which each process has its share `(ceil(size / count), ...)`.

        The gradient goes to a process's own rows, in such a measure that the mean over processes (`average`) is that of
        the whole batch: all compute the same loss.
        """
        if self.count == 1:
            return own
        from accelerate.utils import gather

        rows = gather(own.detach().contiguous()).split(len(own))
        if own.requires_grad:
            own = _times(own, self.count)
        return torch.cat([*rows[: self.number], own, *rows[self.number + 1 :]])[:size]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts the mean over the processes in the place of each one's gradients."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.count == 1 or not gradients:
            return
        from accelerate.utils import reduce

        mean = reduce(torch.cat([each.flatten() for each in gradients]), "mean")
        for gradient, values in zip(gradients, mean.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(values.view_as(gradient))

    def any(self, asked: bool) -> bool:
        """Whether one of the processes is asked to stop."""
        if self.count == 1:
            return asked
        from accelerate.utils import reduce

        return bool(reduce(torch.tensor([float(asked)], device=self.device), "sum") > 0)

    def agreed(self, value: Each) -> Each:
        """The main process's."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def begin_alike(self, method: Method) -> None:
        """Gives each the main process's tensors. AdaptError where a method prepared something else here."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        config = plain.dump(method.config.model_dump(mode="json"))
        if self.agreed(config) != config:
            raise AdaptError(f"{method.name} chose differently in two of {self.count} processes: train with one")
        for tensor in (*method.state_dict().values(), *method.training_state().values()):
            tensor.copy_(broadcast(tensor.to(self.device)))


ALONE = Processes()


def check_alone() -> None:
    """AdaptError in one of several processes that train together: many runs, or what compares some, would meet."""
    if is_launched():
        raise AdaptError("several processes were launched, which train one run together: many runs take --jobs instead")


def processes_on(device: torch.device) -> Processes:
    """Those that train together with this one, a model on `device`."""
    if not is_launched():
        return ALONE
    from accelerate import PartialState

    state: Any = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Processes(state.num_processes, state.process_index, device)


def check_divides(
    processes: Processes, model: Adapted, items: Sequence[Item], settings: TrainSettings | None, cache: bool
) -> None:
    """AdaptError where several processes would gain nothing, or where shares of a batch do not add up to it."""
    method = model.method
    if processes.count == 1:
        return
    if settings is None:
        reason = "takes no steps, and one process solves it"
    elif not isinstance(model, AdaptedModel):
        reason = "answers questions, whose batches are not divided"
    elif of_texts(items):
        reason = "learns from texts, and images are divided"
    elif keeps_features(model, cache) and (settings.augment == "none" or settings.views is not None):
        reason = "has the features of all images in the cache, and no image is encoded in its steps"
    elif "vision" in method.touches and type(method).backward is not Method.backward:
        reason = "changes gradients in a way of its own, which shares of a batch do not add up to"
    else:
        return
    raise AdaptError(f"{processes.count} processes gain nothing: {method.name} {reason}. Train with one")


def _times(x: Tensor, factor: int) -> Tensor:
    """`x` as it is; its gradient times a factor."""
    same = x.view_as(x)
    same.register_hook(lambda gradient: factor * gradient)
    return same
