"""Seeds derived from names, so that an image's augmentation does not depend on what was drawn before."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Draw(NamedTuple):
    """One image to load: its position in the data set and the seed of its augmentation."""

    position: int
    seed: int


def seed_for(*names: object) -> int:
    """Return a 63-bit seed that is derived from `names` and is the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


# One thread at a time: the generators are the process's, and two threads would draw from one another's seed.
_turn = threading.RLock()  # views of an image are drawn inside its own draw


def _renew() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)  # a thread that holds it does not exist in a child


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator and Python's `random` for the `with` block, then restore their states.

    Only one thread at a time can be in the `with` block.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        state = random.getstate()
        # Not torch.manual_seed, which would also seed the GPUs' generators, while fork_rng restores the CPU's only.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
