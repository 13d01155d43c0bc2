"""Settings that are left to the data: the values to choose among, and what a method answers under each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from adapt.methods.base.step import Encoded, ImageStep
from adapt.methods.base.training import Training
from adapt.methods.base.traits import Trait

if TYPE_CHECKING:
    from adapt.methods.base.method import Method

Trial = tuple[dict[str, Any], Tensor]  # settings, and the logits (n, classes) of the validation images under them


class Choice(NamedTuple):
    """The values to try of one setting, in order, and the one to take unless another is surely better."""

    values: Sequence[Any]
    usual: Any
    open_ended: bool = True
    """Whether values beyond the first and the last would make sense too, and the setting may be given them."""


def combinations(choices: Mapping[str, Choice]) -> Iterator[dict[str, Any]]:
    """Every combination of values, the last setting changing first; one empty combination where there is no choice."""
    for values in product(*(choice.values for choice in choices.values())):
        yield dict(zip(choices, values, strict=True))


def configure(method: Method, settings: Mapping[str, Any]) -> None:
    """Put settings of the grid into the method's own."""
    method.config = method.config.model_copy(update=dict(settings))


class Grid(Trait):
    """Leaves settings to the data: see `adapt.training.choice`."""

    at_answer: ClassVar[frozenset[str]] = frozenset()
    """The settings that act on answers alone, so that one fit serves all their values."""

    @property
    def balanced(self) -> bool:
        """Whether each class counts the same in the choice, however many images it has."""
        return False

    @abstractmethod
    def grid(self, training: Training) -> dict[str, Choice]:
        """Return the settings that are left to the data, with the values to try."""

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield the logits of the validation images under each combination of `choices`.

        The method is fitted to the training images again for each, but not where settings act on answers alone
        (`at_answer`), and never where it has `learned` already.
        """
        method: Method = training.model.method
        fits = {name: choice for name, choice in choices.items() if name not in self.at_answer}
        answers = {name: choice for name, choice in choices.items() if name in self.at_answer}
        for settings in combinations(fits):
            configure(method, settings)
            if not learned:
                method.prepare(training)
            step = ImageStep(training.classifier, Encoded(training.features("val")))
            for others in combinations(answers):
                configure(method, others)
                with torch.no_grad():
                    yield settings | others, method.logits(step)
