"""Multi-label classification: several classes per image, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from adapt.common.errors import AdaptError
from adapt.common.shown import SEPARATOR
from adapt.data.item import Cell, Item, Label
from adapt.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor

    from adapt.evaluation.inference import Inference
    from adapt.evaluation.scores import Scores
    from adapt.methods.base import Terms
    from adapt.models.base import Adapted
    from adapt.models.image_model import ImageModel


@dataclass(frozen=True)
class Several(Label):
    """The sorted class names of an image, and the name of its `rarest` class, by which few-shot images are sampled."""

    names: tuple[str, ...]
    rarest: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.names

    @property
    def stratum(self) -> str:
        return self.rarest

    def identity(self, root: str) -> None:
        return None  # class numbers identify it

    def renamed(self, names: Mapping[str, str]) -> Several:
        return Several(tuple(sorted(names[name] for name in self.names)), names.get(self.rarest, ""))


class Labels(Task):
    """The task of multi-label classification, in which each image has any number of classes."""

    name = "labels"
    title = "several classes per image, or none"
    backbones = frozenset({"dual encoder", "vision encoder"})
    example = "emoji-labels"
    items_are = "images with several classes each, or none"
    label_type = Several
    needs = frozenset({"labels"})
    takes_bags = True
    divisible = False
    one_class = False
    several = True

    def read(self, cells: Mapping[str, Cell], where: str) -> Several:
        cell = cells["labels"]
        names: tuple[str, ...] = tuple(cell)  # type: ignore[arg-type]  # a text or names one by one, but no number
        if isinstance(cell, str):
            names = tuple(name.strip() for name in cell.split(SEPARATOR)) if cell else ()
        if "" in names or len(set(names)) < len(names):
            raise AdaptError(f"{where}: the labels are {cell!r}; expected different names, as in cat{SEPARATOR}dog")
        return Several(tuple(sorted(names)), "" if isinstance(cell, str) or not names else names[0])

    def completed(self, labels: Sequence[Several]) -> Sequence[Several]:
        """Return the labels with the rarest class of each image filled in, by which data splits are stratified.

        If the class names were given as a tuple instead of a text, the first name is used in place of the rarest class.
        """
        if not any(label.names for label in labels):
            raise AdaptError("all cells of the column 'labels' are empty: give a class to at least one image")
        _check_separator({name for label in labels for name in label.names})
        images = Counter(name for label in labels for name in label.names)
        rank = {name: (count, name) for name, count in images.items()}
        return [
            replace(label, rarest=label.rarest or min(label.names, key=rank.__getitem__, default=""))
            for label in labels
        ]

    def check_tested(self, model: Adapted, items: Sequence[Item]) -> None:
        """Raise AdaptError if no item has a class, so that there is no average precision."""
        if not any(item.class_names for item in items):
            raise AdaptError(
                f"none of the {len(items)} images to measure on has a class, so there is no average precision: add "
                "images with classes to that part of the data, or leave it out"
            )

    def numbers(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return a bool tensor `(n, c)` that is true where an item has a class."""
        import torch

        place = {name: number for number, name in enumerate(class_names)}
        labels = torch.zeros(len(items), len(class_names), dtype=torch.bool)
        for row, item in zip(labels, items, strict=True):
            row[[place[name] for name in item.class_names]] = True
        return labels

    def shares(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        return self.numbers(items, class_names).double()

    def loss(self, step: Any) -> Terms:
        """Return the binary cross-entropy over all classes."""
        import torch.nn.functional as F

        logits, model = step.logits.float() + (step.model.answers.logit_bias or 0.0), step.model
        loss = F.binary_cross_entropy_with_logits(logits, step.labels.float(), pos_weight=model.class_loss.weights)
        return {"cross_entropy": loss}

    def right(self, step: Any) -> Tensor:
        """Return whether images are classified correctly `(b,)`; for an image without classes, no class is correct."""
        import torch

        best = step.logits.max(-1)
        answered = best.values + (step.model.answers.logit_bias or 0.0) >= 0
        return torch.where(step.labels.any(-1), step.labels.gather(1, best.indices[:, None])[:, 0], ~answered)

    def class_weights(self, items: Sequence[Item], class_names: Sequence[str]) -> Tensor:
        """Return class weights `(c,)` of positive labels, which balance images with and without a class in the loss."""
        counts = self.numbers(items, class_names).sum(0).clamp_min(1)
        return (len(items) - counts) / counts

    def fit_answers(
        self, baseline: Adapted, items: Sequence[Item], inference: Inference, model: Adapted | None = None
    ) -> None:
        """Fit the logit bias of each model, with which it predicts as many labels as the items have.

        Both biases follow from the baseline's logits; those of `model` are taken to differ in their scale alone, or are
        log-odds, which need no bias.
        """
        from adapt.evaluation.multi_label import prior_bias
        from adapt.methods.base.traits import OwnClassifier, trait

        backbone = cast("ImageModel", baseline).backbone
        models = [baseline] if model is None else [baseline, model]
        scales, own = [each.method.logit_scale or backbone.logit_scale for each in models], backbone.logit_bias
        logits, truth = inference.all_logits(baseline, items), self.numbers(items, baseline.class_names)
        for each, scale in zip(models, scales, strict=True):  # the bias that the logits contain is not scaled
            odds = (classifier := trait(each.method, OwnClassifier)) is not None and classifier.gives_odds
            bias = 0.0 if odds else prior_bias((logits - own) * (scale / scales[0]) + own, truth)
            each.answers = replace(each.answers, logit_bias=bias)

    def check_answers(self, model: Adapted) -> None:
        if not model.answers.several:
            raise AdaptError(
                f"the data has several classes per image, but this {model.method.name} predicts one class per image: "
                "train a model on images with several classes"
            )

    def scores(self, items: Sequence[Item], answers: Tensor, class_names: Sequence[str]) -> Scores:
        from adapt.evaluation.multi_label import MultiLabelScores

        return MultiLabelScores.of(items, answers, self.numbers(items, class_names), class_names)


def _check_separator(names: set[str]) -> None:
    """Raise AdaptError for a class name that seems to list several classes with a wrong separator, such as a comma."""
    for other in ";,":
        parts_of = {name: {part.strip() for part in name.split(other)} for name in sorted(names)}
        count = Counter(part for own in parts_of.values() for part in own)
        for name, own in parts_of.items():
            if len(own) > 1 and all(count[part] > 1 for part in own):
                raise AdaptError(
                    f"the column 'labels' has the name {name!r}, whose parts are names in other cells: separate names "
                    f"by {SEPARATOR!r}, as in {SEPARATOR.join(sorted(own))}, or rename the class if this is one name"
                )
