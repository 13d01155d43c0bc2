"""Training by several processes, each of which encodes its share of every batch's images.

The features are gathered, so that each process computes the loss of the full batch, whatever the loss compares:
classes, texts, or the images of a batch with each other. Each process computes for itself what does not depend on
images, such as the features of the classes. Accelerate sets the processes up, under its own `launch`, torchrun or
`adapt train --processes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from adapt import plain
from adapt.data.item import Item
from adapt.devices import is_launched
from adapt.errors import AdaptError
from adapt.features import keeps_features, of_texts
from adapt.methods.base import Method
from adapt.models.base import Adapted
from adapt.models.image_model import ImageModel
from adapt.training.settings import TrainSettings

PATIENCE = timedelta(days=7)  # while the main process evaluates; the launcher ends processes if one fails
Each = TypeVar("Each")


@dataclass(frozen=True)
class Processes:
    """The `number` of this process among `count` training processes; number 0, the main process, writes files."""

    count: int = 1
    number: int = 0
    device: torch.device | str = "cpu"

    @property
    def main(self) -> bool:
        return self.number == 0

    def share(self, draws: Sequence[Each]) -> list[Each]:
        """Return this process's fraction of a batch; all fractions have equal sizes, with repeats if necessary."""
        each = -(-len(draws) // self.count)
        return list(islice(cycle(draws), self.number * each, (self.number + 1) * each))

    def whole(self, own: Tensor, size: int) -> Tensor:
        """Return the rows `(size, ...)` of a full batch, gathered from all processes' rows `(ceil(size / count), ...)`.

        All processes compute the same loss. In each process, the gradient of the loss reaches only the rows of this
        process, and is scaled so that the mean over all processes (`average`) is the gradient of the full batch.
        """
        if self.count == 1:
            return own
        from accelerate.utils import gather

        rows = gather(own.detach().contiguous()).split(len(own))
        if own.requires_grad:
            own = _times(own, self.count)
        return torch.cat([*rows[: self.number], own, *rows[self.number + 1 :]])[:size]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of `parameters` by the mean of the gradients over all processes."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.count == 1 or not gradients:
            return
        from accelerate.utils import reduce

        mean = reduce(torch.cat([each.flatten() for each in gradients]), "mean")
        for gradient, values in zip(gradients, mean.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(values.view_as(gradient))

    def any(self, own: bool) -> bool:
        """Return whether the flag, which is `own` in this process, is set in any process."""
        if self.count == 1:
            return own
        from accelerate.utils import reduce

        return bool(reduce(torch.tensor([float(own)], device=self.device), "sum") > 0)

    def agreed(self, value: Each) -> Each:
        """Return the main process's `value` in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def begin_alike(self, method: Method) -> None:
        """Copy the main process's tensors to all processes. Raises AdaptError if settings of the method differ."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        config = plain.dump(method.config.model_dump(mode="json"))
        if self.agreed(config) != config:
            raise AdaptError(f"{method.name} chose different settings in {self.count} processes: use one process")
        for tensor in (*method.state_dict().values(), *method.training_state().values()):
            tensor.copy_(broadcast(tensor.to(self.device)))


ALONE = Processes()


def check_alone() -> None:
    """Raise AdaptError if several processes were launched to train together, since all would write the same runs."""
    if is_launched():
        raise AdaptError(
            "several processes were launched, but can only train one run together: use --jobs for many runs"
        )


def processes_on(device: torch.device) -> Processes:
    """Return a description of the processes that train together; `device` is the device of this process's model."""
    if not is_launched():
        return ALONE
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    return Processes(state.num_processes, state.process_index, device)


def check_divides(
    processes: Processes, model: Adapted, items: Sequence[Item], settings: TrainSettings | None, cache: bool
) -> None:
    """Raise AdaptError if several processes would save no time, or could not compute the gradient of the full batch."""
    method = model.method
    if processes.count == 1:
        return
    if settings is None:
        reason = "takes no steps, and one process solves it"
    elif not isinstance(model, ImageModel):
        reason = "answers questions, whose batches are not divided"
    elif of_texts(items):
        reason = "learns from texts, and only images are divided"
    elif keeps_features(model, cache) and (settings.augment == "none" or settings.views is not None):
        reason = "reads features from the cache, and encodes no image in its steps"
    elif "vision" in method.touches and type(method).backward is not Method.backward:
        reason = "changes gradients by a rule that needs the full batch"
    else:
        return
    raise AdaptError(f"{processes.count} processes gain nothing, because {method.name} {reason}: use one process")


def _times(x: Tensor, factor: int) -> Tensor:
    """Return `x`, with its gradient multiplied by `factor`."""
    same = x.view_as(x)
    same.register_hook(lambda gradient: factor * gradient)
    return same
