"""DINOv2's linear evaluation: many linear classifiers of frozen tokens learn at once, and the best one is kept.

Paper: Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024, appendix B.3.
Reference: dinov2 `b8931f7`, `dinov2/eval/linear.py`.
Deviations:
* The classifier is chosen on the validation images of the data; the reference's are ImageNet's, on which it is also
  measured.
* A classifier's rate is its factor times `train.lr`, which does not depend on the batch size; the reference multiplies
  by batch / 256. It keys classifiers by five digits of the rate, so that two of its 13 rates get one name; all learn
  here.
* A weight decay acts at `train.lr` on every classifier; the reference has none, nor has the recipe.
* The reference counts epochs of 1,250 batches; here, an epoch is an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError
from adapt.methods.base import ImageStep, Method, MethodConfig, Terms, Training
from adapt.methods.base.method import gradient_times
from adapt.methods.base.traits import ChoosesOnValidation, OwnClassifier

RATES = tuple(digit * 10.0**power for power in range(-5, -1) for digit in (1, 2, 5)) + (0.1,)
STD = 0.01  # of the weights at the start


class DINOLinearConfig(MethodConfig):
    blocks: tuple[PositiveInt, ...] = Field(default=(1, 4), min_length=1)
    """The numbers of last blocks whose class tokens a classifier reads, one classifier for each number."""
    patches: tuple[bool, ...] = Field(default=(False, True), min_length=1)
    """Whether a classifier also reads the mean of the last block's patches, one classifier for each value."""
    rates: tuple[PositiveFloat, ...] = Field(default=RATES, min_length=1)
    """The learning rates, as factors of train.lr, one classifier for each."""

    @property
    def inputs(self) -> tuple[tuple[int, bool], ...]:
        """The inputs of classifiers: a number of blocks, and whether the mean of the patches is among them."""
        return tuple(product(self.blocks, self.patches))


class DINOLinear(Method[ImageStep], ChoosesOnValidation, OwnClassifier):
    """Linear classifiers of class tokens and patches. `DINOLinear(blocks, patches, rates)` trains one for each choice.

    The classifiers of one input are one stack, `heads.I.weight` `(rates, n_classes, d)` and `heads.I.bias`. After
    training, the best classifier on the validation images is left.
    """

    name = "dino_linear"
    title = "DINOv2's linear evaluation (Oquab et al., TMLR 2024)"
    serves: tuple[str, ...] = ("dual encoder", "vision encoder")
    Config = DINOLinearConfig
    reads = frozenset({"images"})
    needs_every_class = True
    per_class = True
    example = {"blocks": [2], "patches": [True], "rates": [0.1]}  # one classifier, for which nothing is chosen
    heads: Any  # an nn.ModuleList of `_Heads`

    @property
    def chosen_on_validation(self) -> str | None:
        return next((name for name in ("rates", "blocks", "patches") if len(getattr(self.config, name)) > 1), None)

    def build(self, backbone: ImageEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        tower = backbone.tower("vision")
        if tower.form.pooling != "class" or tower.final_norm is None:
            raise AdaptError(
                f"dino_linear reads a class token behind a last norm, and {backbone.describe()} has none: use "
                "linear_probe"
            )
        if (most := max(self.config.blocks)) > len(tower.blocks):
            raise AdaptError(f"dino_linear: blocks has {most}, but the vision tower has {len(tower.blocks)} blocks")
        rates = torch.tensor(self.config.rates)
        widths = [tower.width * (blocks + patches) for blocks, patches in self.config.inputs]
        self.heads = nn.ModuleList(_Heads(rates, len(class_names), width) for width in widths).to(backbone.device)

    def inputs(self, step: ImageStep) -> list[Tensor]:
        """Return the inputs `(b, d)` of the classifiers: class tokens of last blocks side by side, and mean patches."""
        tower = step.model.backbone.tower("vision")
        last, first_patch = len(tower.blocks), tower.form.first_patch
        names = [f"vision.{last - number}" for number in range(max(self.config.blocks), 0, -1)]
        assert tower.final_norm is not None
        with torch.no_grad():
            outputs = step.frozen_blocks(names)
            normed = [tower.final_norm(outputs[name][1]) for name in names]  # of the earliest block first
        mean = normed[-1][:, first_patch:].mean(1)
        classes = [tokens[:, 0] for tokens in normed]
        return [
            torch.cat([*classes[-blocks:], *([mean] if patches else [])], dim=-1)
            for blocks, patches in self.config.inputs
        ]

    def every(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return the logits `(k, b, n_classes)` of all k classifiers, those of one input together."""
        return torch.cat([heads(x) for heads, x in zip(self.heads, inputs, strict=True)])

    def logits(self, step: ImageStep) -> Tensor:
        """Return the logits `(b, n_classes)` of the classifier that is left, or of the first one before the choice."""
        return self.every(self.inputs(step))[0]

    def loss(self, step: ImageStep) -> Terms:
        """Return the sum of the classifiers' losses. The best classifier of the batch gives the logits of the step."""
        assert step.labels is not None
        every = self.every(self.inputs(step))
        class_loss = step.model.class_loss
        losses = torch.stack([class_loss(logits, step.labels) for logits in every])
        step.logits = every[int(losses.argmin())]
        return {class_loss.term: losses.sum()}

    def prepare(self, training: Training) -> None:
        if (optimizer := training.settings.optimizer) != "sgd":
            raise AdaptError(
                f"dino_linear gives each classifier its own rate by scaling gradients, which {optimizer} undoes: set "
                "train.optimizer to sgd"
            )

    def finish(self, training: Training) -> None:
        """Keep the classifier with the best accuracy on the validation images, the first one of equals."""
        if self.chosen_on_validation is None:
            return
        every, labels = list[Tensor](), list[Tensor]()
        with torch.no_grad():
            for step in training.steps("val"):
                assert isinstance(step, ImageStep)
                assert step.labels is not None
                every.append(self.every(self.inputs(step)).argmax(-1))
                labels.append(step.labels)
        accuracies = torch.cat(every, dim=1).eq(torch.cat(labels)).float().mean(1)
        best = int(accuracies.argmax())
        self.keep(best)
        chosen = {"settings": self.config.model_dump(mode="json"), "accuracy": float(accuracies[best])}
        training.note(chosen=chosen | {"classifiers": len(accuracies)})

    def keep(self, number: int) -> None:
        """Leave only classifier `number`, of all k in the order of their logits."""
        place, row = divmod(number, len(self.config.rates))
        (blocks, patches), rate = self.config.inputs[place], self.config.rates[row]
        self.config = self.config.model_copy(update={"blocks": (blocks,), "patches": (patches,), "rates": (rate,)})
        self.heads = nn.ModuleList([self.heads[place].alone(row)])


class _Heads(nn.Module):
    """Linear classifiers of one input, `weight` `(r, n_classes, d)` and `bias`, each with a rate of its own."""

    _rates: Tensor

    def __init__(self, rates: Tensor, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("_rates", rates[:, None, None], persistent=False)
        self.weight = nn.Parameter(torch.empty(len(rates), classes, width).normal_(std=STD))
        self.bias = nn.Parameter(torch.zeros(len(rates), 1, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `(r, b, n_classes)` of inputs `(b, d)`."""
        weight, bias = (gradient_times(each, self._rates) for each in (self.weight, self.bias))
        return torch.baddbmm(bias, x.to(weight.dtype).expand(len(weight), -1, -1), weight.transpose(1, 2))

    def alone(self, number: int) -> _Heads:
        """Return classifier `number` by itself."""
        _, classes, width = self.weight.shape
        other = _Heads(self._rates[number : number + 1, 0, 0], classes, width).to(self.weight.device)
        with torch.no_grad():
            other.weight.copy_(self.weight[number : number + 1])
            other.bias.copy_(self.bias[number : number + 1])
        return other
