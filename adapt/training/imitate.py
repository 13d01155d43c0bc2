"""Before a search, and before training, adapters in place of blocks learn to do what their blocks do.

Source: FitNets (Romero et al., ICLR 2015): a thinner network first learns from the hidden layers of the whole one. DAS
starts from random adapters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapt.adapted import Adapted
from adapt.errors import AdaptError
from adapt.model import AdaptedModel
from adapt.training.batches import Batches
from adapt.training.loop import Plan, optimizer_of, set_rate
from adapt.training.progress import counting_bar
from adapt.training.schedules import learning_rate
from adapt.training.settings import TrainSettings

Seen = dict[str, tuple[Tensor, Tensor]]  # what went into each block and what came out


def imitate(model: Adapted[Any], batches: Batches, settings: TrainSettings, show: bool) -> float:
    """Trains the bypasses of `model.method` for `train.imitate` epochs, each by itself; the seconds that took.

    The loss of one is the square of what it lacks to its block's change of the tokens, as a share of that change; rate
    and schedule are those of the training. Raises AdaptError for a model without bypasses in a vision tower.
    """
    if not settings.imitate:
        return 0.0
    bypasses = model.method.bypasses
    if bypasses is None or not isinstance(model, AdaptedModel) or not all(map(_of_vision, bypasses)):
        raise AdaptError(
            f"train.imitate is {settings.imitate}, and {model.method.name} on {model.backbone.describe()} does not "
            "skip blocks of a vision tower and of nothing else: leave it out"
        )
    if not bypasses:
        return 0.0
    alone = settings.model_copy(update={"epochs": settings.imitate, "iterations": None, "accumulate": 1})
    plan = Plan.of(alone, len(batches))
    optimizer = optimizer_of([each for module in bypasses.values() for each in module.parameters()], alone)
    step, seconds = 0, 0.0
    with counting_bar("imitating blocks", show) as progress:
        for epoch in range(plan.epochs):
            for images, _ in batches.epoch(epoch, 0):
                started = time.monotonic()
                set_rate(optimizer, learning_rate(alone, epoch, plan.epochs, step, plan.steps))
                with _watched(model, bypasses) as seen, torch.no_grad():
                    model.backbone_features(images.to(model.backbone.device))
                optimizer.zero_grad(set_to_none=True)
                torch.stack([_lacking(module, *seen[name]) for name, module in bypasses.items()]).sum().backward()
                optimizer.step()
                step, seconds = step + 1, seconds + time.monotonic() - started
                if progress is not None:
                    progress(step, plan.steps)
    return seconds


def _of_vision(name: str) -> bool:
    return name.startswith("vision.")


@contextmanager
def _watched(model: AdaptedModel, names: Any) -> Iterator[Seen]:
    """Inside, the blocks of these names, such as vision.3, leave their inputs and outputs in what is yielded."""
    seen: Seen = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            seen[name] = inputs[0], output[0] if isinstance(output, tuple) else output

        tower, _, index = name.partition(".")
        handles.append(model.backbone.tower(tower).blocks[int(index)].module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _lacking(bypass: nn.Module, before: Tensor, after: Tensor) -> Tensor:
    """How far `bypass` is from turning `before` into `after`, both `(b, l, d)`: 0 where it does, 1 for no change."""
    return (bypass(before) - after).float().square().sum() / (after - before).float().square().sum()
