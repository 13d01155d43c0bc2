"""Training settings: the `train` section of a recipe, and the keyword settings of `fit`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypedDict

from pydantic import Field, field_validator, model_validator

from adapt.common.errors import AdaptError, nearest
from adapt.common.shown import first_of
from adapt.common.validation import StrictModel
from adapt.data.bags import BagPooling
from adapt.data.item import Item

Decay = Annotated[float, Field(ge=0, lt=1)]
_OBJECTIVE = r"cross-entropy|arcsin|accuracy|gce(\((0?\.[0-9]+|1(\.0+)?)\))?|group\([0-9]{1,2}\)"


class Gaussian(StrictModel):
    """Gaussian weights of epochs around the epoch `mean`, as in PromptSRC; epochs are counted from 1."""

    mean: float
    std: float = Field(gt=0)


class EMA(StrictModel):
    """An exponential moving average over steps with the factor `decay`, which starts from the initial values."""

    decay: float = Field(gt=0, lt=1)


class SWA(StrictModel):
    """The mean of the trained tensors over the epochs from `start` on; epochs are counted from 1."""

    start: int = Field(default=1, ge=1)


class Average(StrictModel):
    """An average of the trained tensors by exactly one of three rules, such as `{gaussian: {mean: 15, std: 1}}`."""

    gaussian: Gaussian | None = None
    ema: EMA | None = None
    swa: SWA | None = None

    @model_validator(mode="after")
    def _one(self) -> Average:
        if sum(each is not None for each in (self.gaussian, self.ema, self.swa)) != 1:
            raise ValueError("give exactly one of gaussian, ema and swa")
        return self


class DPOSettings(StrictModel):
    """The loss of preferences, direct preference optimisation."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """The share of pairs that are taken to be in the wrong order."""
    per_token: bool = False
    """Divide log-probabilities by the number of tokens, so that long answers do not weigh more."""
    chosen: float = Field(default=0.0, ge=0)
    """The weight of the chosen answer's log-probability, which is added; STIC's is 1/1024."""


class SVCOSettings(StrictModel):
    """The loss of minimal pairs, symmetrical visual contrastive optimisation."""

    beta: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
    """How strongly the model is held to the reference, in each of four terms: the first image's answer under its image
    against no image, and under no image against the other image, and the same for the second image's answer. A term
    with 0 is left out."""

    @field_validator("beta")
    @classmethod
    def _weights(cls, beta: tuple[float, ...]) -> tuple[float, ...]:
        if min(beta) < 0 or max(beta) == 0:
            raise ValueError(f"beta is {list(beta)}; expected four numbers of at least 0, one of them above 0")
        return beta


class TrainSettings(StrictModel):
    """Settings of the optimiser, schedule and training loop. The defaults, except for epochs, are from CoOp (Dassl)."""

    epochs: int | dict[int, int] | None = None
    """Passes over the training images, or a table of passes by number of shots. Give one of epochs, iterations and
    iterations_per_shot."""
    iterations: int | None = Field(default=None, ge=1)
    """Total number of optimiser steps; the last epoch may be cut short."""
    iterations_per_shot: int | None = Field(default=None, ge=1)
    """Optimiser steps for each shot of a class (CLIP-LoRA)."""
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are averaged into one step, weighted by what each learns: questions, pairs or tokens."""
    drop_last: bool = True
    """Leave out a short last batch, unless it is the only one."""
    group_by_length: bool = False
    """Batches of conversations with similar numbers of tokens, so that few are padding; for native models."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.002, gt=0)
    """The learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """The decays of the two averages of adam and adamw."""
    eps: float = Field(default=1e-8, gt=0)
    """The epsilon of adam and adamw."""
    weight_decay: float = Field(default=5e-4, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Scale the gradients of a step down to this norm, taken over all of them, if theirs is larger."""
    schedule: Literal["cosine_epoch", "cosine_iteration", "linear_iteration", "constant"] = "cosine_epoch"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the rate rises from zero; cosine_epoch uses warmup_epochs instead."""
    warmup_epochs: int = Field(default=1, ge=0)
    warmup_lr: float = Field(default=1e-5, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    objective: str = Field(default="cross-entropy", json_schema_extra={"pattern": f"^({_OBJECTIVE})$"})
    """What is maximised, by the probability p of an image's class: cross-entropy (log p), arcsin (2 arcsin of the root
    of p), accuracy (p), gce(q) (generalised cross-entropy, q 0.7 if left out) or group(G) (what G sampled answers with
    rewards teach). Wrong labels harm the last four less."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """Weight of an image in the cross-entropy: equal, or inverse to the number of training images of its class."""
    terms: dict[str, float] = Field(default_factory=dict)
    """Additional terms of the loss with their weights, also in the rewards of a search. distill: one minus the cosine
    between image features and those of the unadapted backbone. kl: the cross-entropy of the classes' probabilities with
    the unadapted backbone's."""
    dpo: DPOSettings = Field(default_factory=DPOSettings)
    """The loss of preferences."""
    svco: SVCOSettings = Field(default_factory=SVCOSettings)
    """The loss of minimal pairs."""
    average: Average | None = None
    """An average of the trained tensors over the training, which replaces them at its end."""
    keep: Literal["last", "best"] = "last"
    """The epoch whose tensors are kept: the last, or the best by the main score on the validation items."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs in a row without a better score, after which training ends; for keep: best."""
    holdout: float | None = Field(default=None, gt=0, lt=1)
    """Share of each class's training items that the seed draws for validation; groups and entities stay together."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the forward pass; the trained tensors stay fp32. auto: bf16 if steps pass through a tower on a GPU
    with bf16 hardware, fp32 otherwise. fp16 needs CUDA, and uses a loss scaler."""
    augment: Literal["published", "none"] = "published"
    """published: random resized crop and flip. none: the backbone's evaluation transform."""
    views: int | None = Field(default=None, ge=1)
    """Encode this many augmented views of each image once, drawn by the seed, in place of a new view in every epoch (a
    departure from the published training)."""
    workers: int = Field(default=2, ge=0)
    checkpoint_minutes: float = Field(default=1.0, ge=0)
    """Minutes between checkpoints within an epoch; there is always one at its end."""

    @field_validator("objective")
    @classmethod
    def _of_classes(cls, objective: str) -> str:
        if re.fullmatch(_OBJECTIVE, objective):
            name, _, number = objective.rstrip(")").partition("(")
            if name not in ("gce", "group"):
                return name
            if name == "gce" and float(number or 0.7) >= 0.01:
                return f"gce({float(number or 0.7):g})"
            if name == "group" and 2 <= int(number) <= 64:
                return f"group({int(number)})"
        raise ValueError(
            "expected cross-entropy, arcsin, accuracy, gce(q) with q from 0.01 to 1, or group(G) with G from 2 to 64, "
            "in quotes in a shell"
        )

    @field_validator("terms", mode="before", json_schema_input_type=dict[str, float] | None)
    @classmethod
    def _none(cls, terms: object) -> object:
        """Return an empty dictionary for null, which a user sets as `terms` to remove all loss terms of a recipe."""
        return {} if terms is None else terms

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        from adapt.methods.base.step import TERMS  # not above: recipes are read without torch

        for name, weight in terms.items():
            if name not in TERMS:
                raise ValueError(f"unknown loss term {name!r}; {nearest(name, TERMS)}")
            if weight <= 0:
                raise ValueError(f"the weight of the loss term {name} is {weight}; expected a positive number")
        return terms

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        lengths = {name: getattr(self, name) for name in ("epochs", "iterations", "iterations_per_shot")}
        given = {name: length for name, length in lengths.items() if length is not None}
        if len(given) != 1:
            listed = " and ".join(f"{name} {length}" for name, length in given.items())
            conflict = f"; {listed} are given: leave one out, or set it to null" if given else ""
            raise ValueError(f"give exactly one of epochs, iterations and iterations_per_shot{conflict}")
        if isinstance(self.epochs, dict) and (not self.epochs or min(self.epochs) < 1):
            raise ValueError(
                f"epochs has entries for {first_of(sorted(self.epochs))} shots; expected entries for 1 shot or more"
            )
        for epochs in self.epochs.values() if isinstance(self.epochs, dict) else [self.epochs]:
            if epochs is not None and epochs < 1:
                raise ValueError(f"epochs is {epochs}; expected at least 1")
        if self.average and self.average.swa and isinstance(self.epochs, int) and self.average.swa.start > self.epochs:
            start = self.average.swa.start
            raise ValueError(f"swa starts at epoch {start}; expected at most {self.epochs}, the number of epochs")
        if self.keep == "best" and self.average:
            raise ValueError("average joins epochs, of which keep: best keeps one: leave out average, or keep")
        if self.patience is not None and self.keep == "last":
            raise ValueError("patience ends training some epochs after the best, but keep is last: set keep to best")
        if self.views is not None and self.augment == "none":
            raise ValueError("views needs augmented images: set augment to published, or leave out views")
        if self.schedule == "cosine_epoch":
            if self.epochs is None:
                raise ValueError(
                    "the schedule cosine_epoch needs a number of epochs, but iterations are given: give epochs, or "
                    "set schedule to cosine_iteration"
                )
            if self.warmup:
                raise ValueError(
                    "warmup is a fraction of steps, but cosine_epoch warms up by epochs: give warmup_epochs instead"
                )
        return self

    @property
    def fixed_views(self) -> bool:
        """Whether an image has the same views in all epochs, so that their features may be computed once."""
        return self.augment == "none" or self.views is not None

    def at(self, shots: int | None) -> TrainSettings:
        """Return the settings with the length of training resolved to a number, for `shots` training images per class.

        If a table of epochs has no entry for `shots`, the nearest entry by ratio is used. Raises AdaptError if the
        length depends on `shots` and `shots` is None.
        """
        if self.iterations_per_shot is None and not isinstance(self.epochs, dict):
            return self
        if shots is None:
            raise AdaptError(
                "the length of training depends on the number of images per class, which is not known here: give "
                "train.epochs or train.iterations as a single number"
            )
        if isinstance(self.epochs, dict):
            nearest_shots = min(self.epochs, key=lambda known: (abs(math.log(known / shots)), known))
            return self.model_copy(update={"epochs": self.epochs[nearest_shots]})
        return self.model_copy(
            update={"iterations": (self.iterations_per_shot or 1) * shots, "iterations_per_shot": None}
        )


class FitSettings(TypedDict, total=False):
    """The keyword settings of `fit`, which are documented in `fit` and in `TrainSettings`."""

    seed: int
    template: str
    cache: bool
    blend: float | None
    calibrate: bool | None
    pooling: BagPooling
    unlabelled_set: Sequence[Item]
    watch: bool

    epochs: int
    iterations: int
    batch_size: int
    accumulate: int
    drop_last: bool
    group_by_length: bool
    optimizer: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    schedule: Literal["cosine_epoch", "cosine_iteration", "linear_iteration", "constant"]
    warmup: float
    warmup_epochs: int
    warmup_lr: float
    min_lr: float
    objective: str
    class_weights: Literal["equal", "balanced"]
    terms: dict[str, float] | None
    dpo: DPOSettings | Mapping[str, object]
    svco: SVCOSettings | Mapping[str, object]
    average: Average | Mapping[str, object] | None
    keep: Literal["last", "best"]
    patience: int | None
    holdout: float | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    augment: Literal["published", "none"]
    views: int | None
    workers: int
    checkpoint_minutes: float
