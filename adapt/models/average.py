"""The method of an average: several adapters of one backbone, whose probabilities are averaged, in one adapter.

Papers: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NeurIPS
2017; Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011 (mutual information). It
stands here, and not among the methods that are trained, because only its members are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor, nn

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.common.validation import StrictModel
from adapt.methods.base import Encoded, ImageStep, Method, MethodConfig, trait
from adapt.methods.base.traits import ChecksAdapter, OwnClassifier
from adapt.models.building import build
from adapt.models.features import keeps_features
from adapt.models.many import entering
from adapt.models.prediction import PLAIN, Answers
from adapt.models.wrap import assemble

if TYPE_CHECKING:
    from adapt.methods.base import Training


class Member(StrictModel):
    """An adapter in an average: its method with settings, and how its logits become probabilities."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # tensors, of which sets may have some

    method: str
    config: dict[str, object]
    answers: Answers = PLAIN
    order: tuple[int, ...] = ()
    """The place of each class of the average among the member's classes; none if the order is the same."""

    def names(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return the `class_names` of the average in the member's order."""
        return tuple(name for _, name in sorted(zip(self.order, class_names))) or tuple(class_names)


class AverageConfig(MethodConfig):
    members: tuple[Member, ...]


class AverageOfAdapters(Method[ImageStep], OwnClassifier, ChecksAdapter):
    """Several adapters of one backbone. The probability of a class is the mean of the members' probabilities.

    The logits are the logarithms of the mean probabilities or, if an image can have several classes, their log-odds
    without the model's logit bias, which comes after a blend with zero-shot logits.
    Members that use features of the unedited backbone share one pass, and other members the blocks before the first one
    that they edit.
    """

    name = "average"
    title = "Several adapters, whose probabilities are averaged"
    serves = ("dual encoder", "vision encoder")
    Config = AverageConfig

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        made = [methods.find(each.method)(**each.config) for each in self.config.members]
        self.members: Any = nn.ModuleList(made)
        self.reads = frozenset({"images"} if any("vision" in each.touches or each.reads for each in made) else ())
        self.per_image = any(each.per_image for each in made)
        self._checks = {f"members.{i}.": own for i, each in enumerate(made) if (own := trait(each, ChecksAdapter))}
        self._models: dict[tuple[str, ...], list[Any]] = {}  # the members' models by the names of the classes

    @property
    def per_class(self) -> bool:
        return any(own.order for own in self.config.members) or any(each.per_class for each in self.members)

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        for own, method in zip(self.config.members, self.members, strict=True):
            if own.order and sorted(own.order) != list(range(len(class_names))):
                raise AdaptError(f"the order of the classes of {own.method} is not one of {len(class_names)} classes")
            build(backbone, method, own.names(class_names))

    def prepare(self, training: Training) -> None:
        raise AdaptError("an average of adapters is not trained: train its members, and average them again")

    def check_settings(self) -> None:
        for checks in self._checks.values():
            checks.check_settings()

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        for start, checks in self._checks.items():
            own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
            checks.check_tensors(own, source)

    def by_member(self, step: ImageStep) -> Tensor:
        """Return the logarithms of the members' probabilities, as in `ImageStep.members`."""
        names = step.model.class_names
        if names not in self._models:
            each = zip(self.config.members, self.members, strict=True)
            made = [assemble(step.model.backbone, method, own.names(names), step.model.fast) for own, method in each]
            self._models[names] = made
        models, several, found = self._models[names], step.model.answers.several, list[Tensor]()
        editing = {index: model for index, model in enumerate(models) if not keeps_features(model, True)}
        inputs: dict[int, Any] = dict(entering(editing, step.inputs))
        if len(editing) < len(models):
            inputs = dict.fromkeys(range(len(models)), Encoded(step.image_features, counts=step.counts)) | inputs
        for index, own in enumerate(self.config.members):
            member = step._alike(ImageStep(models[index], inputs[index]))
            member.of_classes = step.of_classes.setdefault(("member", index), {})
            found.append(own.answers.of(member).float()[:, list(own.order) or slice(None)])
        every = torch.stack(found)  # (m, b, n)
        # ONNX Runtime computes the logarithms of small probabilities less exactly by logsigmoid
        return -F.softplus(torch.stack([-every, every], -1)) if several else every.log_softmax(-1)

    def logits(self, step: ImageStep) -> Tensor:
        step.members = self.by_member(step)
        mean = step.members.logsumexp(0) - math.log(len(step.members))
        bias = step.model.answers.logit_bias
        return mean if bias is None else mean[..., 0] - mean[..., 1] - bias
