"""The method of an average: several adapters of one backbone, whose probabilities are averaged, in one adapter.

Paper: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NeurIPS
2017; the mutual information is that of Houlsby et al., Bayesian Active Learning for Classification and Preference
Learning, 2011. It stands here and not among the methods that are trained, because only its members are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
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
from adapt.models.prediction import HALF, PLAIN, Answers
from adapt.models.wrap import assemble

if TYPE_CHECKING:
    from adapt.methods.base import Training
    from adapt.models.image_model import ImageModel


class Member(StrictModel):
    """An adapter in an average: its method with settings, and how its logits become probabilities."""

    method: str
    config: dict[str, object]
    answers: Answers = PLAIN
    order: tuple[int, ...] = ()
    """The place of each of the member's classes among those of the average; none for the same order."""


class AverageConfig(MethodConfig):
    members: tuple[Member, ...]


class Average(Method[ImageStep], OwnClassifier, ChecksAdapter):
    """Several adapters of one backbone. The probability of a class is the mean of the members' probabilities.

    The logits are the logarithms of the mean probabilities or, if an image can have several classes, their log-odds.
    Members that use features of the unedited backbone share one pass, and other members the blocks before the first one
    that they edit.
    """

    name = "average"
    title = "Several adapters, whose probabilities are averaged"
    serves = ("dual encoder", "vision encoder")
    Config = AverageConfig

    def __init__(self, **config: object) -> None:
        super().__init__(**config)
        made = [method_called(each.method)(**each.config) for each in self.config.members]
        self.members = nn.ModuleList(made)
        self.reads = frozenset({"images"} if any("vision" in each.touches or each.reads for each in made) else ())
        self._models: dict[tuple[str, ...], list[ImageModel[Any]]] = {}  # of the members, by the names of the classes

    @property
    def per_class(self) -> bool:
        return any(own.order or method.per_class for own, method in self._each())

    @property
    def per_image(self) -> bool:
        return any(method.per_image for _, method in self._each())

    def _each(self) -> Iterator[tuple[Member, Any]]:
        return zip(self.config.members, self.members, strict=True)

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        places = list(range(len(class_names)))
        for own, method in self._each():
            if own.order and sorted(own.order) != places:
                raise AdaptError(f"the order of the classes of {method.name} is not one of {len(places)} classes")
            build(backbone, method, _ordered(class_names, own.order))

    def prepare(self, training: Training) -> None:
        raise AdaptError("an average of adapters is not trained: train its members, and average them again")

    def check_settings(self) -> None:
        for _, method in self._each():
            if checks := trait(method, ChecksAdapter):
                checks.check_settings()

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        for index, (_, method) in enumerate(self._each()):
            if checks := trait(method, ChecksAdapter):
                start = f"members.{index}."
                own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
                checks.check_tensors(own, source)

    def logits(self, step: ImageStep) -> Tensor:
        found: dict[int, Tensor] = {}
        for index, inputs in self._inputs(step):
            own = self.config.members[index]
            member = step._alike(ImageStep(self._of(step.model)[index], inputs))
            member.of_classes = step.of_classes.setdefault(("member", index), {})
            logits = own.answers.of(member).float()
            back = sorted(range(len(own.order)), key=own.order.__getitem__)
            found[index] = logits[:, back] if back else logits
        logits = torch.stack([found[index] for index in range(len(found))])  # (m, b, n)
        several = step.model.answers.several
        logs = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1) if several else logits.log_softmax(-1)
        mean = logs.logsumexp(0) - math.log(len(logs))
        best, own_best = ((each[..., 0].exp() >= HALF if several else each.argmax(-1, True)) for each in (mean, logs))
        nats = (_entropy(mean) - _entropy(logs).mean(0)).flatten(1).sum(-1).clamp(min=0)
        step.disagreement = torch.stack([(own_best != best).any(-1).float().mean(0), nats], -1)
        return mean[..., 0] - mean[..., 1] if several else mean

    def _inputs(self, step: ImageStep) -> Iterator[tuple[int, Any]]:
        """Yield the index of each member and its input: the frozen features of all, images, or inputs of a block."""
        editing = {}
        for index, model in enumerate(self._of(step.model)):
            if keeps_features(model, True):
                yield index, Encoded(step.image_features, counts=step.counts)
            else:
                editing[index] = model
        if isinstance(step.inputs, Tensor):
            yield from entering(editing, step.inputs)
        else:
            yield from dict.fromkeys(editing, step.inputs).items()

    def _of(self, model: ImageModel[Any]) -> list[ImageModel[Any]]:
        """Return the members as models of the classes of `model`, whose class features they keep."""
        names = model.class_names
        if names not in self._models:
            ordered = [(method, _ordered(names, own.order)) for own, method in self._each()]
            made: list[Any] = [assemble(model.backbone, method, own, model.fast) for method, own in ordered]
            self._models[names] = made
        return self._models[names]


def _ordered(class_names: Sequence[str], order: Sequence[int]) -> tuple[str, ...]:
    return tuple(class_names[place] for place in order) or tuple(class_names)


def _entropy(logs: Tensor) -> Tensor:
    """Return the terms of the entropy, in nats, of probabilities whose logarithms are `logs`."""
    return -logs.exp() * logs


def method_called(name: str) -> type[Method]:
    """Return the class of the method that an adapter names, which may be an average of others."""
    return Average if name == Average.name else methods.find(name)
