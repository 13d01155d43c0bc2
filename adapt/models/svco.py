"""Symmetrical visual contrastive optimisation (S-VCO) of native vision-language models, on minimal pairs of images.

Paper: Wu et al., Symmetrical Visual Contrastive Optimization, 2025 (S-VCO).
Reference: s-vco/s-vco `bc8f941`, `trainer.py` (no licence: only its formulas were read).
Deviations: the reference's log-probabilities are computed once, before the first step (the published code computes them
in every step); any method learns, where the paper trains the whole language model.

Each text is compared with itself under other images, so that its length and its wording cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.models.dpo import ComparingStep, Reference


class ContrastStep(ComparingStep):
    """A batch of minimal pairs: a conversation about the first images of each, whose rejected answer the others get."""

    @cached_property
    def sums(self) -> Tensor:
        """The sums of the log-probabilities of both answers' tokens under three kinds of images, `(b, 6)`.

        The first images, the other images and no images, each with the first and the other answer.
        """
        asked = [chat.question for chat in self.chats]
        halves = ((images[: len(images) // 2], images[len(images) // 2 :]) for images in self.inputs)
        own, other = zip(*halves, strict=True)
        blind = [chat.without_images() for chat in asked]
        pairs = [[chat.answer, other] for chat, other in zip(self.chats, self.rejected, strict=True)]
        scores, _ = self.model.score_each([*own, *other, *([] for _ in blind)], [*asked, *asked, *blind], pairs * 3)
        return scores.view(3, len(pairs), 2).transpose(0, 1).flatten(1)

    @property
    def right(self) -> Tensor:
        """Whether both images find their own answer the more probable one, for each pair `(b,)`."""
        return margins(self.sums) > 0

    @property
    def svco(self) -> Tensor:
        """The mean loss of the pairs."""
        known: Reference = self.model.loss_inputs
        return svco_losses(self.sums - known.sums(self.items).to(self.sums.device), known.settings.beta).mean()


def margins(sums: Tensor) -> Tensor:
    """Return by how much each image prefers its own answer, the smaller of both `(b,)`, from `sums` `(b, 6)`."""
    return torch.minimum(sums[:, 0] - sums[:, 1], sums[:, 3] - sums[:, 2])


def svco_losses(gained: Tensor, beta: Sequence[float]) -> Tensor:
    """Return the loss of each pair `(b,)`, from log-probabilities less those of the reference, `gained` `(b, 6)`.

    The columns are those of `ContrastStep.sums`. A term whose `beta` is 0 is left out.
    """
    first_own, other_own, first_other, other_other, first_blind, other_blind = gained.unbind(-1)
    differences = (
        first_own - first_blind, first_blind - first_other, other_other - other_blind, other_blind - other_own,
    )  # fmt: skip
    terms = [-F.logsigmoid(weight * each) for weight, each in zip(beta, differences, strict=True) if weight]
    return torch.stack(terms).sum(0)
