"""The loss of classes: cross-entropy, or an objective that wrong labels harm less.

Each objective is a function of p, the probability of the labelled class, to be maximised. Cross-entropy, log p, weighs
the gradient of p by 1/p, so that an image with a wrong label, whose p is small, pulls hardest. The others weigh it
less.

* `gce(q)`: (p^q - 1) / q, generalised cross-entropy (Zhang and Sabuncu, NeurIPS 2018), of p + 1e-6 as in NLPrompt.
* `arcsin`: 2 arcsin sqrt(p), the limit of `group(G)` for large groups.
* `accuracy`: p, the expected accuracy; 2 (1 - p) is the mean absolute error (Ghosh et al., AAAI 2017; NLPrompt, Pan et
  al., CVPR 2025, `b36bc8e`).
* `group(G)`: the expected update of G sampled answers whose reward is 1 for the right one, standardised in the group
  (CLS-RL without thinking, Li et al., NeurIPS 2025, `0dc42e0`), without sampling. Deviations: the reference adds 1e-4
  to the standard deviation of rewards, and divides by the length of each answer, which is the gradient of no function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CROSS_ENTROPY = "cross-entropy"
WIDEST = 80.0  # margin in which exp(m / 2) and its square are finite in fp32


@dataclass(frozen=True)
class ClassLoss:
    """The mean loss of class logits `(b, n)` with labels `(b,)`, by an objective of `TrainSettings.objective`.

    `weights` `(n,)` are those of the classes. The `template` of the unadapted backbone's answers is given if the loss
    has the term `kl`.
    """

    objective: str = CROSS_ENTROPY
    weights: Tensor | None = None
    template: tuple[str, ...] = ()

    @property
    def term(self) -> str:
        """The name of the loss among the terms of a batch's loss."""
        return self.objective.replace("-", "_")

    @property
    def scores_names(self) -> bool:
        """Whether a native model scores the names of all classes in each step."""
        return self.objective != CROSS_ENTROPY or bool(self.template)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss in fp32; with weights, the weighted mean."""
        if self.objective == CROSS_ENTROPY:
            return F.cross_entropy(logits.float(), labels, self.weights)
        own, logits = labels[:, None], logits.float()
        others = logits.scatter(-1, own, -torch.inf).logsumexp(-1, keepdim=True)
        losses = self._losses((logits.gather(-1, own) - others)[:, 0])
        if self.weights is None:
            return losses.mean()
        weights = self.weights[labels]
        return (weights * losses).sum() / weights.sum()

    def _losses(self, margins: Tensor) -> Tensor:
        """Return the loss `(b,)` of each image from the margin `(b,)` of its label, log p - log(1 - p)."""
        name, _, number = self.objective.rstrip(")").partition("(")
        match cast(Literal["arcsin", "accuracy", "gce", "group"], name):
            case "arcsin":  # autograd of asin(sqrt(p)) is NaN at p = 0 and 1
                return math.pi - 2 * (margins.clamp(-WIDEST, WIDEST) / 2).exp().atan()
            case "accuracy":
                return (-margins).sigmoid()
            case "gce":
                q = float(number)
                return -(q * (margins.sigmoid() + 1e-6).log()).expm1() / q
            case "group":
                return group_weights(margins.detach().sigmoid(), int(number)) * (-margins).sigmoid()


def group_weights(p: Tensor, size: int) -> Tensor:
    """Return the weights `(b,)` on the gradient of p `(b,)`, by which groups of `size` sampled answers learn.

    With k right answers in a group, the spread of rewards is sqrt(k / G (1 - k / G)), and sqrt((G - 1) / G) is due to
    the reference's divisor G - 1 of the variance.
    """
    right = torch.arange(1, size, dtype=torch.float64, device=p.device)
    shares = right / size
    ways = torch.tensor([float(math.comb(size, k)) for k in range(1, size)], dtype=torch.float64, device=p.device)
    each = p.double()[:, None] ** (right - 1) * (1 - p.double()[:, None]) ** (size - right - 1)
    weights = each @ (ways * (shares * (1 - shares)).sqrt()) * math.sqrt((size - 1) / size)
    return weights.to(p.dtype)
