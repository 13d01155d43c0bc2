"""The training loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from adapt import tasks
from adapt.data.item import Item
from adapt.devices import AUTO, prefers_bf16
from adapt.errors import AdaptError
from adapt.methods.base import Terms, checked, total
from adapt.models.base import Adapted
from adapt.training import checkpoint
from adapt.training.average import RunningAverage
from adapt.training.batches import Batches
from adapt.training.checkpoint import Position
from adapt.training.interrupt import graceful
from adapt.training.processes import ALONE, Processes
from adapt.training.run import Run
from adapt.training.schedules import learning_rate
from adapt.training.settings import TrainSettings

Report = Callable[[dict[str, Any]], None]
Loss = Callable[[Any], Terms]  # of a step
_ADVICE = "Lower the learning rate, or train in fp32"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Length:
    """How long training takes: optimiser steps in all, and the epochs that they fill."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, settings: TrainSettings, batches: int) -> Length:
        an_epoch = -(-batches // settings.accumulate)
        steps = settings.iterations or an_epoch * settings.epochs  # type: ignore[operator]
        return cls(steps, -(-steps // an_epoch))


class Trainer:
    """One training: a model, its optimiser, and where they stand.

    It trains `parameters`, by default all of the method's, on `loss`, by default the model's; `saved` is called when
    all steps up to here are in the run's checkpoint, or would be if there were a run.
    """

    def __init__(
        self,
        model: Adapted,
        batches: Batches,
        settings: TrainSettings,
        run: Run | None,
        parameters: Iterable[nn.Parameter] | None = None,
        loss: Loss | None = None,
        saved: Callable[[], None] = lambda: None,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.model, self.batches, self.settings, self.run, self.loss = model, batches, settings, run, loss
        self.saved = saved
        self.plan = Length.of(settings, len(batches))
        self.optimizer = make_optimizer(model, settings, parameters)
        self.scaler = torch.amp.GradScaler(model.backbone.device.type, enabled=settings.precision == "fp16")
        self.average = RunningAverage(model.method, settings.average, self.plan.epochs) if settings.average else None
        self.position = Position()
        self.resumed = run is not None and run.goes_on
        if run is not None and run.goes_on:
            self.position = checkpoint.load(run.checkpoint, self._trained(), run.identity)
            processes.any(False)  # all have read it before the main one goes on

    def train(self, report: Report, epoch_done: Callable[[int, int], None] = lambda epoch, epochs: None) -> Position:
        """Trains to the end of the plan; `report` is told of every step, `epoch_done` of every epoch, and of how many.

        Raises AdaptError when a loss, or what the last step left, is not finite, and KeyboardInterrupt when the user
        stops it. With a run directory, the last good state is in its checkpoint then.
        """
        self.model.train()
        saved = time.monotonic()
        with graceful() as interrupt:
            while self.position.epoch < self.plan.epochs:  # the last one may lack its end only
                for entry in self._epoch():
                    report(entry)
                    if self.processes.any(interrupt.requested):
                        self._keep()
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > 60 * self.settings.checkpoint_minutes:
                        self._keep()
                        saved = time.monotonic()
                epoch_done(self.position.epoch, self.plan.epochs)
                if self.average is not None:
                    self.average.epoch_done(self.position.epoch)
                self.position.epoch, self.position.batch = self.position.epoch + 1, 0
                self._keep()
        if not checkpoint.finite(self.model.method):
            raise AdaptError(
                f"step {self.position.step}, the last, left values that are not finite{self._kept()}. {_ADVICE}"
            )
        if self.average is not None:
            self.average.settle()
        return self.position

    def _epoch(self) -> Iterator[dict[str, Any]]:
        """The rest of the current epoch, an entry for each optimiser step."""
        position, accumulate = self.position, self.settings.accumulate
        remaining = self.batches.epoch(position.epoch, position.batch)
        started = time.monotonic()
        while position.step < self.plan.steps and (group := list(islice(remaining, accumulate))):
            rate = self._set_rate()
            terms, accuracy = self._step(group)
            elapsed = time.monotonic() - started
            position.batch += len(group)
            position.step += 1
            position.seconds += elapsed
            images = sum(len(items) for _, items in group)
            right = {} if accuracy is None else {"accuracy": accuracy}
            apart = {"terms": terms} if len(terms) > 1 else {}
            yield (
                {"step": position.step, "epoch": position.epoch, "loss": sum(terms.values())}
                | right
                | {"lr": rate, "images_per_second": round(images / elapsed, 1)}
                | apart
            )
            started = time.monotonic()

    def _set_rate(self) -> float:
        rate = learning_rate(self.settings, self.position.epoch, self.plan.epochs, self.position.step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _losses(self, step: Any) -> tuple[Terms, Tensor | None]:
        """A batch's loss by its terms, and which answers `(b,)` are right, where some were given."""
        name = self.model.method.name
        if self.loss is not None:
            return followed(checked(self.loss(step), name), name), None
        terms, right = self.model.losses(step, self.settings.terms)
        return followed(terms, name), right

    def _step(self, group: list[tuple[Any, list[Item]]]) -> tuple[dict[str, float], float | None]:
        """One optimiser step over the accumulated batches; their mean loss, by its terms, and their accuracy."""
        device = self.model.backbone.device
        self.optimizer.zero_grad(set_to_none=True)
        means, correct = Counter[str](), list[Tensor]()
        for inputs, items in group:
            step = tasks.of(items).step(self.model, items, inputs)
            if self.batches.divided:
                step.whole = partial(self.processes.whole, size=len(items))
            with autocast(device, self.settings.precision):
                terms, right = self._losses(step)
                loss = total(terms)
            if not loss.isfinite():
                raise self._not_finite({name: float(term.detach()) for name, term in terms.items()})
            self.model.method.backward({name: self.scaler.scale(term / len(group)) for name, term in terms.items()})
            means.update({name: float(term.detach()) / len(group) for name, term in terms.items()})
            correct += [] if right is None else [right]
        self.processes.average(each for group in self.optimizer.param_groups for each in group["params"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.step_done()
        return dict(means), float(torch.cat(correct).cpu().double().mean()) if correct else None

    def _keep(self) -> None:
        """Renews the checkpoint, unless the last step broke the values."""
        if not checkpoint.finite(self.model.method):
            return
        if self.run is not None and self.run.writes:
            checkpoint.save(self.run.checkpoint, self._trained(), self.position, self.run.identity)
        self.saved()

    def _trained(self) -> checkpoint.Trained:
        method, average = self.model.method, self.average.values if self.average else {}
        beside = {f"average.{name}": value for name, value in average.items()}
        beside |= {f"method.{name}": value for name, value in method.training_state().items()}
        return checkpoint.Trained(method, self.optimizer, self.scaler, beside, self.model.backbone.device)

    def _not_finite(self, terms: dict[str, float]) -> AdaptError:
        """The step did not happen yet: unless the one before broke the values, the state is good and kept."""
        self._keep()
        loss = sum(terms.values())
        apart = f" ({', '.join(f'{name} {term}' for name, term in terms.items())})" * (len(terms) > 1)
        return AdaptError(f"the loss is {loss}{apart} at step {self.position.step + 1}{self._kept()}. {_ADVICE}")

    def _kept(self) -> str:
        there = self.run is not None and self.run.checkpoint.exists()
        return f"; the last good state is in {self.run.checkpoint}" if there else ""  # type: ignore[union-attr]


def followed(terms: Terms, method: str) -> Terms:
    """The terms of a method's loss. AdaptError where none of them depends on anything that is trained."""
    if not any(term.requires_grad for term in terms.values()):
        raise AdaptError(f"{method}: no term of its loss ({', '.join(terms)}) depends on what is trained")
    return terms


def precision_on(device: torch.device, asked: str, through_towers: bool) -> str:
    """What `auto` is: bf16 where it pays, in steps that pass through a tower, on a device that has it in hardware."""
    if asked != AUTO:
        return asked
    return "bf16" if through_towers and prefers_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass, or nothing for fp32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def make_optimizer(
    model: Adapted, settings: TrainSettings, parameters: Iterable[nn.Parameter] | None = None
) -> Optimizer:
    """The optimiser over `parameters`, by default all that the method trains. Raises AdaptError for fp16 off CUDA."""
    if settings.precision == "fp16" and model.backbone.device.type != "cuda":
        raise AdaptError("precision fp16 needs a CUDA device and a loss scaler; use bf16 or fp32 on the CPU")
    parameters = list(model.method.trains() if parameters is None else parameters)
    if not parameters:
        raise AdaptError(f"{model.method.name} is to take steps, and has no parameter that could learn")
    if settings.optimizer != "sgd":
        kind = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
        return kind(parameters, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay)
    return SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
