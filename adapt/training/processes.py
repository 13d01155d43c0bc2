"""Training by several processes, each of which has a share of every batch.

For images and pairs, each process encodes its share of the images. The features are gathered, so that each process
computes the loss of the full batch, whatever the loss compares: classes, texts, or the images of a batch with each
other. Each process computes for itself what does not depend on images, such as the features of the classes.

Questions and conversations are divided by items: each process computes the loss of its own items, and the gradients
add up to that of the full batch, as over accumulated batches.

Accelerate sets the processes up, under its own `launch`, torchrun or `adapt train --processes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle, islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from adapt import plain
from adapt.data.item import Item
from adapt.devices import is_launched, rng_states, set_rng_states
from adapt.errors import AdaptError
from adapt.features import keeps_features, of_texts
from adapt.methods.base import Method
from adapt.methods.base.traits import OwnTerms
from adapt.models.base import Adapted
from adapt.models.image_model import ImageModel
from adapt.training.settings import TrainSettings

PATIENCE = timedelta(days=7)  # while the main process evaluates; the launcher ends processes if one fails
Each = TypeVar("Each")


@dataclass(frozen=True)
class Processes:
    """The `number` of this process among `count` training processes; number 0, the main process, writes files.

    With `by_items`, each process computes the loss of its own items of a batch, otherwise that of the full batch.
    """

    count: int = 1
    number: int = 0
    device: torch.device | str = "cpu"
    by_items: bool = False

    @property
    def main(self) -> bool:
        return self.number == 0

    def own(self, draws: Sequence[Each]) -> list[Each]:
        """Return this process's items of a batch that is divided by items: none if there are fewer than processes."""
        return list(draws[self.number :: self.count])

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

    def combine(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients of `parameters` by those of the full batch, their mean or, by items, their sum.

        A parameter without gradient here, such as of a tower that none of this process's items passed through, gets one
        if another process has one.
        """
        if self.count == 1:
            return
        from accelerate.utils import reduce

        has = torch.tensor([float(each.grad is not None) for each in parameters], device=self.device)
        used = [each for each, count in zip(parameters, reduce(has, "sum").tolist(), strict=True) if count]
        if not used:
            return
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in used]
        combined = reduce(torch.cat([each.flatten() for each in own]), "sum" if self.by_items else "mean")
        for parameter, values in zip(used, combined.split([each.numel() for each in own]), strict=True):
            parameter.grad = values.view_as(parameter).to(parameter.dtype)

    def summed(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes of figures that each measured of its own items."""
        if not self.by_items:
            return dict(figures)
        from accelerate.utils import gather_object

        sums: dict[str, float] = {}
        for each in gather_object([figures]):
            sums |= {name: sums.get(name, 0.0) + figure for name, figure in each.items()}
        return sums

    def draw_alike(self) -> None:
        """Set the random generators to the states of the main process, from which batches of its items moved them."""
        if self.by_items:
            device = torch.device(self.device)
            set_rng_states(self.agreed(rng_states(device)), device)

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


def divided(
    processes: Processes, model: Adapted, items: Sequence[Item], settings: TrainSettings | None, cache: bool
) -> Processes:
    """Return `processes` with the way in which they divide the batches of `items`.

    Raises AdaptError if several processes would save no time, or could not compute the gradient of the full batch.
    """
    method = model.method
    if processes.count == 1:
        return processes
    by_items, own_backward = not isinstance(model, ImageModel), type(method).backward is not Method.backward
    if settings is None:
        reason = "takes no steps, and one process solves it"
    elif by_items and not _adds_up(method):
        reason = "has terms of the loss that may compare the items of a batch"
    elif of_texts(items):
        reason = "learns from texts, and only images are divided"
    elif keeps_features(model, cache) and (settings.augment == "none" or settings.views is not None):
        reason = "reads features from the cache, and encodes no image in its steps"
    elif own_backward and (by_items or "vision" in method.touches):
        reason = "changes gradients by a rule that needs the full batch"
    else:
        return replace(processes, by_items=by_items)
    raise AdaptError(f"{processes.count} processes gain nothing, because {method.name} {reason}: use one process")


def _adds_up(method: Method) -> bool:
    """Return whether the loss of a batch is that of the task alone, which is a mean over the items of a batch."""
    return all(
        not part.has_own_terms if isinstance(part, OwnTerms) else type(part).loss is Method.loss
        for part in method.parts.values()
    )


def _times(x: Tensor, factor: int) -> Tensor:
    """Return `x`, with its gradient multiplied by `factor`."""
    same = x.view_as(x)
    same.register_hook(lambda gradient: factor * gradient)
    return same
