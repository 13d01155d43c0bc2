"""Settings of methods that are tuned on the data: the values to try, and the logits under each value."""

from __future__ import annotations

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
    """The values to try for one setting, in order, and the usual value, which only a clearly better value replaces."""

    values: Sequence[Any]
    usual: Any
    open_ended: bool = True
    """Whether the setting also accepts values beyond the first and the last, and they would make sense."""


def combinations(choices: Mapping[str, Choice]) -> Iterator[dict[str, object]]:
    """Yield each combination of the settings' values, with the last setting varying fastest; {} for no settings."""
    for values in product(*(choice.values for choice in choices.values())):
        yield dict(zip(choices, values, strict=True))


def configure(method: Method, settings: Mapping[str, object]) -> None:
    """Replace the values of `settings` in the method's config."""
    method.config = method.config.model_copy(update=dict(settings))


class Grid(Trait):
    """The trait of methods with settings that are tuned on the data by `adapt.training.choice`."""

    config: Any
    choices: ClassVar[Mapping[str, Choice]] = {}
    """The settings that the data choose where the config has None, with the values to try."""

    at_answer: ClassVar[frozenset[str]] = frozenset()
    """The settings that change only the answers, so that one fit serves all their values."""

    most_accurate: ClassVar[bool] = True
    """Whether validation images choose the most accurate values, as published, and not the likeliest ones."""

    @property
    def balanced(self) -> bool:
        """Whether classes count equally when settings are compared, however many images each class has."""
        return False

    def grid(self, training: Training) -> dict[str, Choice]:
        """Return the settings that are tuned on the data, with the values to try: the `choices` that are not set."""
        return {name: choice for name, choice in self.choices.items() if getattr(self.config, name) is None}

    def setting(self, name: str) -> float:
        """Return the value of one of the `choices`, which is the usual value until the data have chosen another."""
        value = getattr(self.config, name)
        return float(self.choices[name].usual if value is None else value)

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Yield each combination of the values in `choices`, with the resulting logits of the validation images.

        The method is fitted to the training images once for each combination of the settings outside `at_answer`. If
        `learned` is true, the method is already fitted, and is not fitted again.
        """
        method: Method = training.model.method
        fits = {name: choice for name, choice in choices.items() if name not in self.at_answer}
        answers = {name: choice for name, choice in choices.items() if name in self.at_answer}
        for settings in combinations(fits):
            configure(method, settings)
            if not learned:
                training.prepare()
            step = ImageStep(training.classifier, Encoded(training.features("val")))
            for others in combinations(answers):
                configure(method, others)
                with torch.no_grad():
                    yield settings | others, method.logits(step)
