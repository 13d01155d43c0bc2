"""Direct preference optimisation (DPO) of native vision-language models.

Paper: Rafailov et al., Direct Preference Optimization, NeurIPS 2023, equation 7; label smoothing as in Mitchell's note
on conservative DPO, 2023; log-probabilities divided by the number of tokens as an option.
Reference: TRL 1.16.0, `DPOTrainer` with the loss `sigmoid`.

The reference is the backbone without the adapter, or the adapter that training starts from. Its log-probabilities are
computed once, before the first step (TRL computes them in every step).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import torch.nn.functional as F
from torch import Tensor

from adapt.models.base import Adapted, is_native
from adapt.models.native_vlm import ChatStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapt.data.item import Item
    from adapt.methods.base.training import Training
    from adapt.recipe.settings import DPOSettings


class ComparingStep(ChatStep):
    """A batch of conversations with a chosen answer, and the rejected answer of each."""

    def __init__(self, model: Adapted, inputs: object, rejected: Sequence[str], labels: Tensor | None = None) -> None:
        super().__init__(model, inputs, labels)
        self.rejected = list(rejected)

    def again(self) -> Self:
        return self._alike(type(self)(self.model, self.inputs, self.rejected, self._labels))

    @property
    def weight(self) -> float:
        """The number of pairs."""
        return float(len(self.rejected))


class PreferenceStep(ComparingStep):
    """A batch of preferences, with the loss of DPO."""

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        pairs = [[chat.answer, other] for chat, other in zip(self.chats, self.rejected, strict=True)]
        sums, tokens = self.model.score_each(self.inputs, [chat.question for chat in self.chats], pairs)
        return sums.view(-1, 2), tokens.view(-1, 2)

    @property
    def sums(self) -> Tensor:
        """The sums of the log-probabilities of the tokens of the chosen and the rejected answers, `(b, 2)`."""
        return self._scores[0]

    @property
    def tokens(self) -> Tensor:
        """The numbers of tokens of the chosen and the rejected answers, `(b, 2)`."""
        return self._scores[1]

    @property
    def right(self) -> Tensor:
        """Whether the chosen answer is more probable than the rejected one, for each pair `(b,)`."""
        return self.sums[:, 0] > self.sums[:, 1]

    @cached_property
    def rewards(self) -> Tensor:
        """The log-ratios `(b, 2)` of the chosen and the rejected answers' probabilities to those under the reference.

        These are differences of log-probabilities times beta, of sums over tokens or, if so set, of means.
        """
        known: Reference = self.model.loss_inputs
        gained = self.sums - known.sums(self.items).to(self.sums.device)
        return known.settings.beta * (gained / self.tokens if known.settings.per_token else gained)

    @property
    def dpo(self) -> Tensor:
        """The mean loss of the pairs."""
        return dpo_losses(self.rewards, self.sums, self.model.loss_inputs.settings).mean()


def dpo_losses(rewards: Tensor, sums: Tensor, settings: DPOSettings) -> Tensor:
    """Return the loss of each pair `(b,)`, from rewards and log-probabilities `(b, 2)` of its answers, chosen first.

    With `settings.chosen`, the log-probability of the chosen answer counts too (STIC: Deng et al., Enhancing Large
    Vision Language Models with Self-Training on Image Comprehension, NeurIPS 2024; reference `993734e`, whose
    `_get_noisy_batch_logps` scores other tokens than those of the rejected answer, unlike the paper and this function).
    """
    margins, smoothing = rewards[:, 0] - rewards[:, 1], settings.label_smoothing
    losses = -((1 - smoothing) * F.logsigmoid(margins) + smoothing * F.logsigmoid(-margins))
    return losses - settings.chosen * sums[:, 0]


class Reference:
    """The inputs of a loss beside the model: its settings, and the reference's log-probabilities of the answers."""

    def __init__(self, settings: Any, items: Sequence[Item], sums: Tensor) -> None:
        self.settings = settings
        self._row = {item: row for row, item in enumerate(items)}
        self._sums = sums

    def sums(self, items: Sequence[Item]) -> Tensor:
        """Return the reference's `step.sums` `(b, n)` for a batch of items."""
        return self._sums[[self._row[item] for item in items]]


def refer(training: Training, settings: object) -> None:
    """Compute the reference's log-probabilities of all training items, and give them to the model for its loss."""
    assert is_native(training.model)  # as of every backbone that these tasks allow
    sums = training.reference(lambda step: step.sums)
    training.model.loss_inputs = Reference(settings, training.items("train"), sums)
