"""SAVs: the attention heads that best tell the training images apart vote on the class of an image, without training.

Paper: Mitra et al., Sparse Attention Vectors, ICCV 2025 (arXiv 2412.00142).
Reference: SAVs `4eab6c7`, `src/utils.py`.
Deviations:
* Of heads that answer equally many training images, the deeper come first; the reference sorts them in no fixed order.
* Heads have the model's own size; the reference divides the hidden size by their number.
* The question is the backbone's, without the words that the reference puts behind it.
* Logits are the logarithms of shares of the votes. The class that the best head voted for first wins a tie, as there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.methods.base import ImageStep, Training
from adapt.methods.base.heads import ClassifyingHeads
from adapt.methods.base.plain_classifier import class_means

TIE = 0.1  # of a vote, for the class of the best head, and less for those of the others: it decides only ties
BESIDE = 0.05  # votes added for every class, so that the logarithm of no vote is finite


class SAVs(ClassifyingHeads):
    """Votes of attention heads, each for the class whose mean vector is nearest to the image's by cosine."""

    name = "savs"
    title = "SAVs (Mitra et al., ICCV 2025)"
    example = {"heads": 5}

    def prepare(self, training: Training) -> None:
        labels, classes = training.labels("train"), self.bias.shape[1]
        vectors = [*self.each(training.features("train", unit=False))]
        means = [F.normalize(class_means(each, labels, classes), dim=-1) for each in vectors]
        self.keep(vectors, labels, [(each, each.new_zeros(classes)) for each in means])

    def score(self, logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.argmax(-1) == labels).sum()

    def logits(self, step: ImageStep) -> Tensor:
        votes = self.votes(step.features)
        first = (votes * torch.linspace(TIE, 0, votes.shape[1] + 1, device=votes.device)[:-1, None]).amax(1)
        return (votes.sum(1) + first + BESIDE).log()

    def votes(self, features: Tensor) -> Tensor:
        """Return the votes `(b, k, n_classes)` of the heads, the best first: one of each is 1, and the others are 0."""
        answers = self.of_heads(features)
        return F.one_hot(answers.argmax(-1), answers.shape[-1]).to(answers)
