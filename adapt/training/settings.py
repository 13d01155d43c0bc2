"""How to train, as data: the `train` section of a recipe and the keyword arguments of `fit`."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adapt.errors import AdaptError, nearest
from adapt.shown import first_of


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Gaussian(_Settings):
    """Weights of epochs by a bell around the epoch `mean`, the first being 1 (PromptSRC)."""

    mean: float
    std: float = Field(gt=0)


class EMA(_Settings):
    """A moving average over steps that keeps the share `decay` at each, and starts from where training does."""

    decay: float = Field(gt=0, lt=1)


class SWA(_Settings):
    """The mean of the epochs from `start` on, the first being 1."""

    start: int = Field(default=1, ge=1)


class Average(_Settings):
    """One of three averages, such as `{gaussian: {mean: 15, std: 1}}`."""

    gaussian: Gaussian | None = None
    ema: EMA | None = None
    swa: SWA | None = None

    @model_validator(mode="after")
    def _one(self) -> Average:
        if sum(each is not None for each in (self.gaussian, self.ema, self.swa)) != 1:
            raise ValueError("give one of gaussian, ema and swa")
        return self


class TrainSettings(_Settings):
    """Optimiser, schedule and loop. The defaults are CoOp's (Dassl's), except for the number of epochs."""

    epochs: int | dict[int, int] | None = None
    """Passes over the training images, or passes for each number of shots. Give one of the three."""
    iterations: int | None = Field(default=None, ge=1)
    """Optimiser steps in all; the last epoch is cut short."""
    iterations_per_shot: int | None = Field(default=None, ge=1)
    """Optimiser steps for each shot (CLIP-LoRA)."""
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged into one step."""
    drop_last: bool = True
    """Leave out a last short batch (only where there is a full one)."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.002, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    """Of adam and adamw."""
    weight_decay: float = Field(default=5e-4, ge=0)
    schedule: Literal["cosine_epoch", "cosine_iteration", "linear_iteration", "constant"] = "cosine_epoch"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the rate first rises from zero; cosine_epoch has warmup_epochs in its place."""
    warmup_epochs: int = Field(default=1, ge=0)
    warmup_lr: float = Field(default=1e-5, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    class_weights: Literal["equal", "balanced"] = "equal"
    """How much an image counts in the cross-entropy: the same, or one over how many training images its class has."""
    terms: dict[str, float] = Field(default_factory=dict)
    """More terms of the loss with their weights, which a search's rewards have too. distill: one minus the cosine of
    image features with those of the backbone alone."""
    average: Average | None = None
    """What takes the place of the trained tensors at the end: an average of theirs over the training."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast of the forward pass; the trained tensors stay fp32. auto: bf16 where steps pass through a tower on a GPU
    that has it in hardware, fp32 elsewhere. fp16 needs CUDA and brings a loss scaler."""
    augment: Literal["published", "none"] = "published"
    """Random resized crop and flip, or the backbone's own evaluation transform."""
    views: int | None = Field(default=None, ge=1)
    """Encode this many seeded augmented views of each image once, in place of a fresh one each time (a departure)."""
    workers: int = Field(default=2, ge=0)
    checkpoint_minutes: float = Field(default=1.0, ge=0)
    """How often a run directory's checkpoint is renewed within an epoch; it is at every epoch's end."""

    @field_validator("terms", mode="before", json_schema_input_type=dict[str, float] | None)
    @classmethod
    def _none(cls, terms: Any) -> Any:
        """Null is no term, which a recipe needs to take away what it has otherwise."""
        return {} if terms is None else terms

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        from adapt.methods.base.terms import TERMS  # not above: recipes are read without torch

        for name, weight in terms.items():
            if name not in TERMS:
                raise ValueError(f"there is no term {name!r}; {nearest(name, TERMS)}")
            if weight <= 0:
                raise ValueError(f"the weight of {name} is {weight}; expected a positive number")
        return terms

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        lengths = {name: getattr(self, name) for name in ("epochs", "iterations", "iterations_per_shot")}
        given = {name: length for name, length in lengths.items() if length is not None}
        if len(given) != 1:
            several = " and ".join(f"{name} {length}" for name, length in given.items())
            found = f"; {several} are given: leave one out, or set it to null" if given else ""
            raise ValueError(f"give one of epochs, iterations and iterations_per_shot{found}")
        if isinstance(self.epochs, dict) and (not self.epochs or min(self.epochs) < 1):
            raise ValueError(f"epochs are given for {first_of(sorted(self.epochs))} shots; expected numbers from 1 on")
        for epochs in self.epochs.values() if isinstance(self.epochs, dict) else [self.epochs]:
            if epochs is not None and epochs < 1:
                raise ValueError(f"{epochs} epochs; at least 1 is needed")
        if self.average and self.average.swa and isinstance(self.epochs, int) and self.average.swa.start > self.epochs:
            raise ValueError(f"swa starts at epoch {self.average.swa.start}, and there are {self.epochs} epochs")
        if self.views is not None and self.augment == "none":
            raise ValueError("views are of augmented images: set augment to published, or leave views out")
        if self.schedule == "cosine_epoch":
            if self.epochs is None:
                raise ValueError(
                    "the cosine_epoch schedule counts epochs, and iterations are given: give epochs, or set schedule "
                    "to cosine_iteration"
                )
            if self.warmup:
                raise ValueError("warmup is a share of steps: with cosine_epoch give warmup_epochs")
        return self

    def at(self, shots: int | None) -> TrainSettings:
        """These settings with a plain length of training for so many training images a class.

        A table of epochs that has no entry for them gives that of the nearest number, by ratio. AdaptError where the
        length depends on the number and it is not known.
        """
        if self.iterations_per_shot is None and not isinstance(self.epochs, dict):
            return self
        if shots is None:
            raise AdaptError(
                "the length of training depends on the number of images a class, which is not known here: give "
                "train.epochs or train.iterations as a plain number"
            )
        if isinstance(self.epochs, dict):
            nearest_shots = min(self.epochs, key=lambda known: (abs(math.log(known / shots)), known))
            return self.model_copy(update={"epochs": self.epochs[nearest_shots]})
        return self.model_copy(
            update={"iterations": (self.iterations_per_shot or 1) * shots, "iterations_per_shot": None}
        )
