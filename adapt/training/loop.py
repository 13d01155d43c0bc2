"""The training loop: its checkpoints, averages of its tensors, and schedules of its rate in closed form, as published.

A checkpoint has all that the next step depends on. Averages replace the trained tensors at the end: PromptSRC `bb95c77`
(Gaussian weights over epochs); Izmailov et al., UAI 2018 (stochastic weight averaging, SWA); Polyak and Juditsky, 1992,
with exponential weights (EMA).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from adapt import tasks
from adapt.common import plain
from adapt.common.devices import AUTO, keeping_rng, prefers_bf16, rng_states, set_rng_states
from adapt.common.disk import replacing
from adapt.common.errors import AdaptError
from adapt.common.interrupt import graceful
from adapt.common.progress import LogEntry, Report
from adapt.common.shown import shown
from adapt.data.item import Item
from adapt.evaluation.scores import Scores
from adapt.formats import tensor_file
from adapt.formats.rebuild import load_tensors
from adapt.formats.tensor_file import check_finite
from adapt.methods.base import Method, ParameterGroup, Step, Terms, checked
from adapt.models.base import Adapted
from adapt.recipe.settings import Average, TrainSettings
from adapt.training.batches import Batches
from adapt.training.processes import ALONE, Processes
from adapt.training.run import Run


class RunningAverage:
    """A running average of a method's parameters, as a weighted sum over epochs or a moving average over steps.

    Parameters that adapters leave out are averaged too, because they learned to fit the others.
    """

    def __init__(self, method: Method, settings: Average, epochs: int) -> None:
        own = dict(method.named_parameters())
        known = {id(parameter) for parameter in own.values()}
        others = [parameter for parameter in method.trains() if id(parameter) not in known]
        self._parameters = own | {f"aside.{number}": each for number, each in enumerate(others)}
        self._weights = epoch_weights(settings, epochs)
        self._decay = settings.ema.decay if settings.ema else None
        self.values: dict[str, Tensor] = {  # a moving average starts from the initial parameters
            name: torch.zeros_like(each) if self._decay is None else each.detach().clone()
            for name, each in self._parameters.items()
        }

    @torch.no_grad()
    def step_done(self) -> None:
        """Update the average with the current parameters after an optimiser step, if the average is over steps."""
        if self._decay is not None:
            for name, parameter in self._parameters.items():
                self.values[name].lerp_(parameter, 1 - self._decay)

    @torch.no_grad()
    def epoch_done(self, epoch: int) -> None:
        """Add the current parameters at the end of `epoch`, counted from 0, if the average is over epochs."""
        if self._decay is None:
            for name, parameter in self._parameters.items():
                self.values[name] += self._weights[epoch] * parameter

    @torch.no_grad()
    def settle(self) -> None:
        """Replace the parameters by the running average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])


def epoch_weights(settings: Average, epochs: int) -> Sequence[float]:
    """Return the weights of all epochs, which sum to 1, or an empty sequence for an average over steps.

    Gaussian weights are proportional to `exp(-(t - mean)^2 / (2 std^2))` for epoch t, counted from 1. Raises AdaptError
    if every weight is zero.
    """
    if settings.gaussian is not None:
        mean, std = settings.gaussian.mean, settings.gaussian.std
        weights = [math.exp(-((epoch - mean) ** 2) / (2 * std**2)) for epoch in range(1, epochs + 1)]
    elif settings.swa is not None:
        weights = [float(epoch >= settings.swa.start) for epoch in range(1, epochs + 1)]
    else:
        return ()
    if not sum(weights):
        raise AdaptError(
            f"train.average gives a weight of zero to all {epochs} epochs, which are counted from 1: set the mean or "
            f"start of train.average to a number from 1 to {epochs}"
        )
    return [weight / sum(weights) for weight in weights]


T = TypeVar("T")
_WHAT = tensor_file.What("checkpoint", "start a new run with another --out")


class Position(BaseModel):
    """The progress of a training run, with `batch` finished batches of the current epoch and `step` finished steps."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: int = Field(default=0, ge=0)
    batch: int = Field(default=0, ge=0)
    step: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0)
    scores: list[float] = []  # of epochs on validation items, more for better ones, if the best is kept

    @property
    def kept(self) -> int:
        """The epoch, counted from 0, whose tensors are kept: the first with the best score, or else the last one."""
        return self.scores.index(max(self.scores)) if self.scores else self.epoch - 1


def _optimizer_state(optimizer: Optimizer, named: Mapping[str, object]) -> dict[int, dict[str, object]]:
    """Return the optimiser's state by parameter. Raises ValueError if an entry does not fit the parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, object]] = {}
    for name, value in named.items():
        index, key = name.split(".", 1)
        shape = value.shape if isinstance(value, Tensor) else ()
        if not 0 <= int(index) < len(parameters) or shape not in ((), parameters[int(index)].shape):
            raise ValueError(f"the optimiser state {name} does not match the name and shape of a parameter")
        state.setdefault(int(index), {})[key] = value
    return state


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy `values` into `tensors`. Raises ValueError if the names or shapes differ."""
    if tensors.keys() != values.keys() or any(tensors[name].shape != value.shape for name, value in values.items()):
        raise ValueError("the stored training tensors do not match the names and shapes of the tensors of this method")
    for name, value in values.items():
        tensors[name].copy_(value)


def finite(method: Method) -> bool:
    """Return whether all trained parameters of the method are finite."""
    return all(bool(parameter.isfinite().all()) for parameter in method.trains())


def _under(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


Loss = Callable[[Step], Terms]
Before = Callable[[int, int], None]
_ADVICE = "lower the learning rate, or train in fp32"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Length:
    """The length of a training run as the number of optimiser steps and the number of epochs."""

    steps: int
    epochs: int

    @classmethod
    def of(cls, settings: TrainSettings, batches: int) -> Length:
        """Return the length of a training run with `batches` batches in each epoch."""
        an_epoch = -(-batches // settings.accumulate)
        steps = settings.iterations or an_epoch * settings.epochs  # type: ignore[operator]
        return cls(steps, -(-steps // an_epoch))


class Trainer:
    """A trainer of one model, with an optimiser, a position in the training run, and the training loop.

    By default, `parameters` are all of the method, and `loss` is the model's. `saved` is called after each checkpoint
    that contains all steps so far or, without a run, at the same times; `before` with the epoch, counted from 0, and
    the step, counted from 1, before each batch of a step; `score` after each epoch if the best is kept.
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
        before: Before = lambda epoch, step: None,
        processes: Processes = ALONE,
        score: Callable[[], Scores] | None = None,
    ) -> None:
        self.before, self.processes = before, processes
        self.score = score if settings.keep == "best" else None
        self.model, self.batches, self.settings, self.run, self.loss = model, batches, settings, run, loss
        self.saved = saved
        self.length = Length.of(settings, len(batches))
        self.optimizer = make_optimizer(model, settings, parameters)
        self.scaler = torch.amp.GradScaler(model.backbone.device.type, enabled=settings.precision == "fp16")
        self.average = RunningAverage(model.method, settings.average, self.length.epochs) if settings.average else None
        self.best = {name: each.clone() for name, each in self._learned.items()} if self.score else {}
        self.position = Position()
        self.resumed = run is not None and run.goes_on
        if run is not None and run.goes_on:
            self._load(run)
            processes.any(False)  # wait until all have read it, before the main process replaces it

    def train(self, report: Report, epoch_done: Callable[[int, int], None] = lambda epoch, epochs: None) -> Position:
        """Train until the last step, and return the final position.

        `report` is called with the log entry of each step, and `epoch_done` with each epoch and the number of epochs.
        Raises AdaptError if a loss, or a trained value after the last step, is not finite, and KeyboardInterrupt if the
        user stops the training. After an error, the checkpoint in the run directory contains the last good state.
        """
        self.model.train()
        saved, patience = time.monotonic(), self.settings.patience or self.length.epochs
        with graceful() as interrupt:
            while self.position.epoch < self.length.epochs:
                if self.score is not None and self.position.epoch > self.position.kept + patience:
                    break
                for entry in self._epoch():  # none if the run was stopped after the epoch's last step
                    if self.position.step == self.length.steps or self.position.batch == len(self.batches):
                        epoch_done(self.position.epoch, self.length.epochs)
                        if self.average is not None:
                            self.average.epoch_done(self.position.epoch)
                        if self.score is not None:
                            entry["val"] = self._validate(self.score)
                    report(entry)
                    if self.processes.any(interrupt.requested):
                        self._keep()
                        raise KeyboardInterrupt
                    if time.monotonic() - saved > 60 * self.settings.checkpoint_minutes:
                        self._keep()
                        saved = time.monotonic()
                self.position.epoch, self.position.batch = self.position.epoch + 1, 0
                self._keep()
        if not finite(self.model.method):
            raise AdaptError(
                f"after the last step, {self.position.step}, trained values are not finite{self._last_good()}: "
                f"{_ADVICE}"
            )
        if self.average is not None:
            self.average.settle()
        if self.best:
            _fill(self._learned, self.best)
        return self.position

    def _validate(self, score: Callable[[], Scores]) -> dict[str, float]:
        """Return the main score after the current epoch by its name, and keep the tensors if it is the best so far."""
        self.model.eval()
        with keeping_rng(self.model.backbone.device):
            scores = self.processes.agreed(score())  # all score, and none waits for one that fails
        self.model.train()
        self.position.scores.append(float(scores.merits.double().mean()))
        if self.position.kept == self.position.epoch:
            _fill(self.best, self._learned)
        return {scores.compared_by.name: scores.figures()[scores.compared_by.name]}

    def _epoch(self) -> Iterator[LogEntry]:
        """Take the remaining steps of the current epoch, and yield a log entry (loss, rate, ...) for each step."""
        position, accumulate = self.position, self.settings.accumulate
        remaining = self.batches.epoch(position.epoch, position.batch)
        started = time.monotonic()
        while position.step < self.length.steps and (group := list(islice(remaining, accumulate))):
            rate = self._set_rate()
            terms, counts = self._step(group)
            elapsed = time.monotonic() - started
            position.batch += len(group)
            position.step += 1
            position.seconds += elapsed
            entry: LogEntry = {
                "step": position.step,
                "epoch": position.epoch,
                "loss": sum(terms.values()),
                "lr": rate,
                "images_per_second": round(counts["items"] / elapsed, 1),
            }
            if counts["answers"]:
                entry["accuracy"] = counts["right"] / counts["answers"]
            if len(terms) > 1:
                entry["terms"] = terms
            yield entry
            started = time.monotonic()

    def _set_rate(self) -> float:
        rate = learning_rate(
            self.settings, self.position.epoch, self.length.epochs, self.position.step, self.length.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        return rate

    def _losses(self, step: Step) -> tuple[Terms, Tensor | None]:
        """Return a batch's loss terms, and a bool tensor `(b,)` of correct answers (None with a custom loss)."""
        name = self.model.method.name
        if self.loss is not None:
            return followed(checked(self.loss(step), name), name), None
        terms, right = self.model.losses(step, self.settings.terms)
        return followed(terms, name), right

    def _step(self, group: list[tuple[object, list[Item]]]) -> tuple[dict[str, float], dict[str, float]]:
        """Take one optimiser step over accumulated batches, and return the terms of the mean loss by name.

        Also return how many `items` and `answers` there were, and how many answers were `right`.
        """
        device = self.model.backbone.device
        self.optimizer.zero_grad(set_to_none=True)
        means, correct = Counter[str](), list[Tensor]()
        steps = [tasks.of(items).step(self.model, items, inputs) if items else None for inputs, items in group]
        alone = len(steps) == 1 and not self.processes.by_items  # where a weight says nothing, but may take time
        weights = [0.0 if step is None else 1.0 if alone else step.weight for step in steps]
        whole = self.processes.weight(sum(weights))
        if all(step is None for step in steps):  # this process has no items: its scaler still takes part in the step
            self.scaler.scale(torch.zeros((), device=device))
        for weight in weights:
            step = steps.pop(0)  # a step, once taken, is let go with its activations
            self.before(self.position.epoch, self.position.step + 1)
            if step is None:
                continue
            share = whole / weight
            if self.batches.gathered:
                step.whole = partial(self.processes.whole, size=len(step.items))
            with autocast(device, self.settings.precision):
                terms, right = self._losses(step)
            self.model.method.backward({name: self.scaler.scale(term / share) for name, term in terms.items()})
            means.update({name: float(term.detach()) / share for name, term in terms.items()})
            correct += [] if right is None else [right]
        right = torch.cat(correct).cpu().double() if correct else torch.zeros(0)
        own = {"items": sum(len(items) for _, items in group), "answers": right.numel(), "right": float(right.sum())}
        loss, counts = self.processes.summed(means, own)
        if not math.isfinite(sum(loss.values())):
            raise self._not_finite(loss)
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        self.processes.combine(parameters)
        if self.settings.max_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.step_done()
        self.processes.draw_alike()
        return loss, counts

    def _keep(self) -> None:
        """Write a new checkpoint in place of the old checkpoint, unless a trained value is not finite."""
        if not finite(self.model.method):
            return
        if self.run is not None and self.run.writes:
            self._save(self.run)
        self.saved()

    @property
    def _learned(self) -> dict[str, Tensor]:
        """The tensors of the method, also those that only training needs."""
        beside = {f"beside.{name}": value for name, value in self.model.method.training_state().items()}
        return self.model.method.state_dict() | beside

    @property
    def _beside(self) -> dict[str, Tensor]:
        """The tensors of the training that the adapter does not need."""
        average = self.average.values if self.average else {}
        kinds = {"average": average, "best": self.best, "method": self.model.method.training_state()}
        return {f"{kind}.{name}": value for kind, own in kinds.items() for name, value in own.items()}

    def _save(self, run: Run) -> None:
        """Replace the checkpoint of `run` atomically."""
        tensors = {f"method.{name}": tensor for name, tensor in self.model.method.state_dict().items()}
        tensors |= {f"beside.{name}": tensor for name, tensor in self._beside.items()}
        numbers: dict[str, object] = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    numbers[f"optimizer.{index}.{key}"] = value
        tensors |= {f"rng.{name}": state for name, state in rng_states(self.model.backbone.device).items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {
            "recipe": run.identity,
            "position": plain.dump(self.position.model_dump()),
            "optimizer": plain.dump(numbers),
            "scaler": plain.dump(self.scaler.state_dict()),
        }
        with replacing(run.checkpoint) as temporary:
            tensor_file.write(tensors, temporary, metadata)

    def _load(self, run: Run) -> None:
        """Restore the trained tensors, the random state and the position from the checkpoint of `run`.

        Raises AdaptError if the checkpoint is missing or damaged, or belongs to another recipe.
        """
        path, optimizer = run.checkpoint, self.optimizer
        metadata = tensor_file.describe(path, _WHAT).metadata
        tensors = tensor_file.read(path, _WHAT)
        check_finite({name: x for name, x in tensors.items() if not name.startswith("beside.")}, str(path))
        if metadata.get("recipe") != run.identity:
            raise AdaptError(
                f"{path} belongs to another recipe, to other images or names of classes, or to another adapter as the "
                "start: use the original ones, or another --out"
            )
        load_tensors(self.model.method, _under("method.", tensors), str(path))
        try:
            _fill(self._beside, _under("beside.", tensors))
            numbers = plain.parse(metadata["optimizer"])
            state = _optimizer_state(optimizer, _under("optimizer.", tensors) | _under("optimizer.", numbers))
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            self.scaler.load_state_dict(plain.parse(metadata["scaler"]))
            set_rng_states(_under("rng.", tensors), self.model.backbone.device)
            self.position = Position.model_validate(plain.parse(metadata["position"]))
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise AdaptError(
                f"{path} is damaged ({shown(error)}) and cannot be resumed: start a new run with another --out"
            ) from error

    def _not_finite(self, terms: dict[str, float]) -> AdaptError:
        """Save the state if all trained values are finite, and return the error for a loss that is not finite.

        The state can be saved because the optimiser has not yet made a step with this loss.
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
    """Return the loss `terms` unchanged. Raises AdaptError if no term depends on a trained parameter."""
    if not any(term.requires_grad for term in terms.values()):
        raise AdaptError(
            f"{method}: no term of the loss ({', '.join(terms)}) depends on a trained parameter: correct the loss or "
            "the settings of the method"
        )
    return terms


def precision_on(device: torch.device, precision: str, through_towers: bool) -> str:
    """Return `precision`, where `auto` becomes bf16 for steps through a tower on bf16 hardware, and fp32 otherwise."""
    if precision != AUTO:
        return precision
    return "bf16" if through_towers and prefers_bf16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context for the forward pass, which has no effect for fp32."""
    return torch.autocast(device.type, _DTYPES.get(precision), enabled=precision in _DTYPES)


def make_optimizer(
    model: Adapted, settings: TrainSettings, parameters: Iterable[nn.Parameter] | None = None
) -> Optimizer:
    """Return an optimiser of `parameters`, by default of the method's groups, each with the factor of its rate.

    Raises AdaptError for fp16 on a device other than CUDA, if there are no parameters, or if the method's groups are
    not of the parameters that it trains.
    """
    if settings.precision == "fp16" and model.backbone.device.type != "cuda":
        raise AdaptError("precision fp16 needs a CUDA device: use bf16 or fp32")
    method, decay = model.method, settings.weight_decay
    groups = list(method.groups() if parameters is None else [ParameterGroup(tuple(parameters))])
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    if not listed:
        raise AdaptError(f"{method.name} takes gradient steps, but has no trained parameter: correct the method")
    if parameters is None and sorted(listed) != sorted(map(id, method.trains())):
        raise AdaptError(f"the groups of {method.name} are not of the parameters that it trains: correct the method")
    rows = [
        {"params": list(group.parameters), "rate": group.rate, "weight_decay": decay * group.decays}
        for group in groups
        if group.parameters
    ]
    if settings.optimizer != "sgd":
        kind = {"adam": Adam, "adamw": AdamW}[settings.optimizer]
        return kind(rows, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    return SGD(rows, lr=settings.lr, momentum=settings.momentum)


def learning_rate(settings: TrainSettings, epoch: int, epochs: int, step: int, steps: int) -> float:
    """Return the learning rate at `step` of `steps` in `epoch` of `epochs`; step and epoch are counted from 0.

    `cosine_epoch` is Dassl's, as in CoOp: constant in the warm-up, then a cosine whose period is the total number of
    epochs, so that the rate does not reach zero. The others are over steps: `cosine_iteration` as in CLIP-LoRA, and
    `linear_iteration` as in DAS, both down to `min_lr`. With a warm-up over steps, as in the Trainer of transformers
    (VLoRA, DAS), they begin after the warm-up.
    """
    lr, least = settings.lr, settings.min_lr
    if settings.schedule == "cosine_epoch":
        if epoch < settings.warmup_epochs:
            return settings.warmup_lr
        return 0.5 * lr * (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / epochs))
    rising = math.ceil(settings.warmup * steps)
    if step < rising:
        return lr * step / rising
    step, steps = step - rising, steps - rising
    if settings.schedule == "cosine_iteration":
        return least + 0.5 * (lr - least) * (1 + math.cos(math.pi * step / steps))
    return lr if settings.schedule == "constant" else lr + (least - lr) * step / steps
