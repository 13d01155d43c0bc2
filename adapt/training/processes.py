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

from adapt import tasks
from adapt.common import plain
from adapt.common.devices import is_launched, rng_states, set_rng_states
from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.methods.base import Method
from adapt.methods.base.method import gradient_times
from adapt.methods.base.traits import OwnTerms
from adapt.models.base import Adapted
from adapt.models.features import keeps_features, of_texts
from adapt.models.image_model import ImageModel
from adapt.recipe.settings import TrainSettings
from adapt.tasks.base import Task

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
        process, and is scaled so that the mean over all processes (`combine`) is the gradient of the full batch.
        """
        if self.count == 1:
            return own
        from accelerate.utils import gather

        rows = gather(own.detach().contiguous()).split(len(own))
        own = gradient_times(own, self.count)
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

    def summed(self, *figures: Mapping[str, float]) -> list[dict[str, float]]:
        """Return the sums over all processes of named figures that each process measured of its own items."""
        if not self.by_items:
            return [dict(each) for each in figures]
        from accelerate.utils import gather_object

        sums: list[dict[str, float]] = [{} for _ in figures]
        for measured in gather_object([figures]):
            for total, own in zip(sums, measured, strict=True):
                total |= {name: total.get(name, 0.0) + figure for name, figure in own.items()}
        return sums

    def weight(self, own: float) -> float:
        """Return the weight of a full step, of which this process's own items have the weight `own`."""
        return self._sum(own) if self.by_items else own

    def any(self, own: bool) -> bool:
        """Return whether the flag, which is `own` in this process, is set in any process."""
        return own if self.count == 1 else self._sum(float(own)) > 0

    def _sum(self, own: float) -> float:
        from accelerate.utils import reduce

        return float(reduce(torch.tensor([own], dtype=torch.float, device=self.device), "sum"))

    def draw_alike(self) -> None:
        """Give all processes the main process's random states, which differ after batches of different items."""
        if self.by_items:
            device = torch.device(self.device)
            set_rng_states(self.agreed(rng_states(device)), device)

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


def dividing(
    processes: Processes, model: Adapted, items: Sequence[Item], settings: TrainSettings | None, cache: bool
) -> Processes:
    """Return `processes` with the way in which they divide the batches of `items`.

    Raises AdaptError if several processes would save no time, or could not compute the gradient of the full batch.
    """
    method = model.method
    if processes.count == 1:
        return processes
    by_items, own_backward = not isinstance(model, ImageModel), type(method).backward is not Method.backward
    idle, wrong = "gain nothing, because", "cannot train together, because"
    if settings is None:
        reason = f"{idle} {method.name} takes no steps, and one process solves it"
    elif by_items and not (_adds_up(tasks.of(items)) and all(map(_leaves_loss, method.parts.values()))):
        reason = f"{wrong} the loss may compare the items of a batch, whose shares do not meet ({method.name})"
    elif by_items and (size := min(settings.batch_size, len(items))) < processes.count:
        reason = f"{idle} a batch has only {size} of the {items[0].task.noun}"
    elif of_texts(items):
        reason = f"{idle} {method.name} learns from texts, and only images are divided"
    elif keeps_features(model, cache) and settings.fixed_views:
        reason = f"{idle} {method.name} reads features from the cache, and encodes no image in its steps"
    elif own_backward and (by_items or "vision" in method.touches):
        reason = f"{wrong} {method.name} changes gradients by a rule that needs the full batch"
    else:
        return replace(processes, by_items=by_items)
    raise AdaptError(f"{processes.count} processes {reason}: use one process")


def _adds_up(task: Task) -> bool:
    """Return whether the loss of a batch is a mean over its items, weighted by `step.weight`."""
    return task.has_summed_loss and _knows(type(task), "has_summed_loss", "loss", "step")


def _leaves_loss(method: Method) -> bool:
    """Return whether the method's loss is that of the task."""
    if isinstance(method, OwnTerms) and _knows(type(method), "has_own_terms", "loss"):
        return not method.has_own_terms
    return type(method).loss is Method.loss


def _knows(kind: type, member: str, *about: str) -> bool:
    """Return whether `member` may speak for the members `about`: no subclass has replaced one of them since."""
    defined = {name: next(n for n, each in enumerate(kind.__mro__) if name in vars(each)) for name in (member, *about)}
    return all(defined[member] <= defined[name] for name in about)
