"""Several LoRA adapters as one: what is mixed are the changes of weights B A, and never the factors by themselves."""

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
    """For each place of a backbone the factors of one adapter, at the scaling of the members.

    A linear mixture is exact, its rank the sum of the members' (peft's `cat`); another one, or one of a given rank, is
    the nearest of the rank that is asked for, or else of the members' own, by singular values (peft's `..._svd`).
    """
    rank = sum(a.shape[0] for a, _ in places[0])
    if mixture.is_linear and (mixture.rank is None or mixture.rank >= rank):
        return [_side_by_side(members, mixture) for members in places]
    rank = mixture.rank or places[0][0][0].shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixture.seed)
        changes = [mixture.of_changes([scaling * (b @ a) for a, b in members]) for members in places]
    found = [_nearest(change / scaling, rank) for change in changes]
    whole = sum(float(change.square().sum()) for change in changes)
    kept = sum(float((scaling * (b @ a)).square().sum()) for a, b in found)
    logger.info("rank %d holds %.1f %% of the mixed change (share of its squares)", rank, 100 * kept / (whole or 1.0))
    return found


def _side_by_side(members: Sequence[Factors], mixture: Mixture) -> Factors:
    """Factors whose product is the weighted sum of the members' products."""
    weighted = [weight * b for weight, (_, b) in zip(mixture.weights, members, strict=True)]
    return torch.cat([a for a, _ in members]), torch.cat(weighted, dim=1)


def _nearest(change: Tensor, rank: int) -> Factors:
    """The factors of the nearest change of this rank; columns of zeros where the change has a lower one."""
    u, values, v = torch.linalg.svd(change, full_matrices=False)
    short = max(0, rank - len(values))
    root = values[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    return torch.nn.functional.pad(a, (0, 0, 0, short)), torch.nn.functional.pad(b, (0, short))


def scaled_alpha(alpha: float, rank: int, new_rank: int) -> float:
    """The alpha with which alpha / sqrt(rank) stays what it is."""
    return alpha * math.sqrt(new_rank / rank)
