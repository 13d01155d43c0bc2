"""Randomness by name: the draws of one image depend on what it is drawn for, not on what was drawn before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Draw(NamedTuple):
    """One image to load: its position in the data set, and the seed of its augmentation."""

    position: int
    seed: int


def seed_for(*names: object) -> int:
    """A seed of 63 bits that stands for `names`, the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run with torch's CPU generator and Python's `random` seeded, then put both back as they were."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs' generators as well, and fork_rng keeps the CPU's only.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
