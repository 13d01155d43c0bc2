"""The training loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from adapt import tasks
from adapt.data.item import Item
from adapt.devices import AUTO, prefers_bf16
from adapt.errors import AdaptError
from adapt.methods.base import Step, Terms, checked, total
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

Report = Callable[[dict[str, object]], None]
Loss = Callable[[Step], Terms]
_ADVICE = "lower the learning rate, or train in fp32"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Length:
    """The length of a training: its optimiser steps, and the epochs that they fill."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, settings: TrainSettings, batches: int) -> Length:
        """Return the length of a training with `batches` batches in an epoch."""
        an_epoch = -(-batches // settings.accumulate)
        steps = settings.iterations or an_epoch * settings.epochs  # type: ignore[operator]
        return cls(steps, -(-steps // an_epoch))


class Trainer:
    """A trainer of one model: its optimiser, its position, and the loop.

    It trains `parameters`, by default all of the method's, on `loss`, by default the model's. It calls `saved` whenever
    it has written a checkpoint with all steps so far; without a run it calls `saved` at the same times.
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
            processes.any(False)  # wait until all have read it, before the main process replaces it

    def train(self, report: Report, epoch_done: Callable[[int, int], None] = lambda epoch, epochs: None) -> Position:
        """Train to the end, and return the final position.

        `report` is called with each step's log entry, `epoch_done` with each epoch and the number of epochs. Raises
        AdaptError if a loss, or a value after the last step, is not finite, and KeyboardInterrupt if the user stops the
        training; the checkpoint of a run directory then holds the last good state.
        """
        self.model.train()
        saved = time.monotonic()
        with graceful() as interrupt:
            while self.position.epoch < self.plan.epochs:  # a resumed last epoch may have no steps left
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
                f"the last step, {self.position.step}, left values that are not finite{self._last_good()}: {_ADVICE}"
            )
        if self.average is not None:
            self.average.settle()
        return self.position

    def _epoch(self) -> Iterator[dict[str, object]]:
        """Take the remaining steps of the current epoch, and yield a log entry for each (loss, rate, ...)."""
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
            entry: dict[str, object] = {"step": position.step, "epoch": position.epoch, "loss": sum(terms.values())}
            if accuracy is not None:
                entry["accuracy"] = accuracy
            entry |= {"lr": rate, "images_per_second": round(images / elapsed, 1)}
            if len(terms) > 1:
                entry["terms"] = terms
            yield entry
            started = time.monotonic()

    def _set_rate(self) -> float:
        rate = learning_rate(self.settings, self.position.epoch, self.plan.epochs, self.position.step, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _losses(self, step: Step) -> tuple[Terms, Tensor | None]:
        """Return the terms of a batch's loss, and which answers `(b,)` are right, or None if `loss` was given."""
        name = self.model.method.name
        if self.loss is not None:
            return followed(checked(self.loss(step), name), name), None
        terms, right = self.model.losses(step, self.settings.terms)
        return followed(terms, name), right

    def _step(self, group: list[tuple[object, list[Item]]]) -> tuple[dict[str, float], float | None]:
        """Take one optimiser step over accumulated batches; return the terms of their mean loss, and their accuracy."""
        device = self.model.backbone.device
        self.optimizer.zero_grad(set_to_none=True)
        means, correct = Counter[str](), list[Tensor]()
        steps = [tasks.of(items).step(self.model, items, inputs) for inputs, items in group]
        weights = sum(step.weight for step in steps)
        while steps:  # a step, once taken, is let go with its activations
            step = steps.pop(0)
            share = weights / step.weight
            if self.batches.divided:
                step.whole = partial(self.processes.whole, size=len(step.items))
            with autocast(device, self.settings.precision):
                terms, right = self._losses(step)
                loss = total(terms)
            if not loss.isfinite():
                raise self._not_finite({name: float(term.detach()) for name, term in terms.items()})
            self.model.method.backward({name: self.scaler.scale(term / share) for name, term in terms.items()})
            means.update({name: float(term.detach()) / share for name, term in terms.items()})
            correct += [] if right is None else [right]
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        self.processes.average(parameters)
        if self.settings.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.step_done()
        return dict(means), float(torch.cat(correct).cpu().double().mean()) if correct else None

    def _keep(self) -> None:
        """Write a new checkpoint in place of the old one, unless a trained value is no longer finite."""
        if not checkpoint.finite(self.model.method):
            return
        if self.run is not None and self.run.writes:
            checkpoint.save(self.run.checkpoint, self._trained(), self.position, self.run.identity)
        self.saved()

    def _trained(self) -> checkpoint.Trained:
        method, average = self.model.method, self.average.values if self.average else {}
        extra = {f"average.{name}": value for name, value in average.items()}
        extra |= {f"method.{name}": value for name, value in method.training_state().items()}
        return checkpoint.Trained(method, self.optimizer, self.scaler, extra, self.model.backbone.device)

    def _not_finite(self, terms: dict[str, float]) -> AdaptError:
        """Return the error for a loss that is not finite.

        The optimiser has not stepped on it, so the state is saved first, if it is finite.
        """
        self._keep()
        loss = sum(terms.values())
        by_term = f" ({', '.join(f'{name} {term}' for name, term in terms.items())})" * (len(terms) > 1)
        step = self.position.step + 1
        return AdaptError(f"the loss is {loss}{by_term} at step {step}{self._last_good()}: {_ADVICE}")

    def _last_good(self) -> str:
        there = self.run is not None and self.run.checkpoint.exists()
        return f"; the last good state is in {self.run.checkpoint}" if there else ""  # type: ignore[union-attr]


def followed(terms: Terms, method: str) -> Terms:
    """Return `terms` itself, the terms of a method's loss. Raises AdaptError if none depends on a trained parameter."""
    if not any(term.requires_grad for term in terms.values()):
        raise AdaptError(
            f"{method}: no term of its loss ({', '.join(terms)}) depends on a trained parameter: correct its loss or "
            "its settings"
        )
    return terms


def precision_on(device: torch.device, precision: str, through_towers: bool) -> str:
    """Return `precision`, or the one that `auto` means: bf16 for steps through a tower on bf16 hardware, else fp32."""
    if precision != AUTO:
        return precision
    return "bf16" if through_towers and prefers_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast of the forward pass, which does nothing for fp32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def make_optimizer(
    model: Adapted, settings: TrainSettings, parameters: Iterable[nn.Parameter] | None = None
) -> Optimizer:
    """Return the optimiser of `parameters`, by default all that the method trains.

    Raises AdaptError for fp16 on a device other than CUDA, or if there are no parameters.
    """
    if settings.precision == "fp16" and model.backbone.device.type != "cuda":
        raise AdaptError("precision fp16 needs a CUDA device: use bf16 or fp32")
    parameters = list(model.method.trains() if parameters is None else parameters)
    if not parameters:
        raise AdaptError(f"{model.method.name} is trained by steps, but has no parameter to train")
    if settings.optimizer != "sgd":
        kind = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
        return kind(parameters, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay)
    return SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
