"""Mixtures of LoRA adapters: the weight changes B A are mixed, not the factors A and B."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adapt.methods.base.mixture import Mixture

logger = logging.getLogger("adapt")

Factors = tuple[Tensor, Tensor]  # A `(r, in)` and B `(out, r)`


def mixed(places: Sequence[Sequence[Factors]], scaling: float, mixture: Mixture) -> list[Factors]:
    """Return the LoRA factors that merge several adapters for each projection, with the adapters' common scaling.

    A linear mixture is exact, and its rank is the sum of the adapters' ranks (peft's `cat`). Any other mixture, or a
    lower `mixture.rank`, is approximated by a truncated SVD, by default at the adapters' rank (peft's `..._svd`).
    """
    rank = sum(a.shape[0] for a, _ in places[0])
    if mixture.is_linear and (mixture.rank is None or mixture.rank >= rank):
        return [_side_by_side(members, mixture) for members in places]
    rank = mixture.rank or places[0][0][0].shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixture.seed)
        changes = [mixture.of_changes([scaling * (b @ a) for a, b in members]) for members in places]
    factors = [_nearest(change / scaling, rank) for change in changes]
    exact = sum(float(change.square().sum()) for change in changes)
    retained = sum(float((scaling * (b @ a)).square().sum()) for a, b in factors)
    logger.info(
        "rank %d retains %.1f %% of the squared norm of the mixed weight change", rank, 100 * retained / (exact or 1.0)
    )
    return factors


def _side_by_side(members: Sequence[Factors], mixture: Mixture) -> Factors:
    """Return LoRA factors A and B whose product B A is the weighted sum of the adapters' products B A."""
    weighted = [weight * b for weight, (_, b) in zip(mixture.weights, members, strict=True)]
    return torch.cat([a for a, _ in members]), torch.cat(weighted, dim=1)


def _nearest(change: Tensor, rank: int) -> Factors:
    """Return the LoRA factors of rank `rank` that best approximate the weight change `change`, padded with zeros."""
    u, values, v = torch.linalg.svd(change, full_matrices=False)
    short = max(0, rank - len(values))
    root = values[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    return torch.nn.functional.pad(a, (0, 0, 0, short)), torch.nn.functional.pad(b, (0, short))


def scaled_alpha(alpha: float, rank: int, new_rank: int) -> float:
    """Return the alpha that keeps alpha / sqrt(rank) constant when the rank changes to `new_rank`."""
    return alpha * math.sqrt(new_rank / rank)
