"""One adapter of each method, damaged again and again: each is refused, or gives the logits that it gave."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import one_of_each
import torch
from checks import perturb
from faults import corrupt, outcomes
from faults.outcomes import Outcome
from torch import Tensor

import adapt

NAMES = tuple(one_of_each.makers())


@dataclass(frozen=True)
class Case:
    """One damaged file."""

    adapter: str
    damage: str
    seed: int
    outcome: Outcome

    @property
    def bad(self) -> bool:
        too_much = self.outcome.seconds > 10 or self.outcome.mebibytes > 1024
        return self.outcome.kind not in ("refused", "equal") or too_much


@cache
def saved(name: str) -> tuple[bytes, Any, Tensor]:
    """The file of a model, the backbone to load it on, and its logits."""
    backbone, method, class_names = one_of_each.makers()[name]()
    torch.manual_seed(0)
    model = perturb(adapt.wrap(backbone, method, class_names)).eval()
    model.metadata = one_of_each.METADATA
    with TemporaryDirectory() as folder:
        return model.save(Path(folder) / "a.safetensors").read_bytes(), backbone, one_of_each.logits(model)


def cases(name: str, damages: Sequence[corrupt.Damage], seeds: Iterable[int]) -> Iterator[Case]:
    """For each seed one damage of each kind."""
    content, backbone, expected = saved(name)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        for seed, damage in product(seeds, damages):
            made = damage(content, random.Random(f"{name} {damage.__name__} {seed}"))
            if made != content:
                path.write_bytes(made)
                found = outcomes.of(lambda: outcomes.loaded(path, backbone, expected, one_of_each.logits))
                yield Case(name, damage.__name__, seed, found)


def summary(found: Sequence[Case]) -> str:
    kinds = Counter(case.outcome.kind for case in found)
    seconds = max(case.outcome.seconds for case in found)
    mebibytes = max(case.outcome.mebibytes for case in found)
    return (
        f"{len(found)} damaged adapters of {len({case.adapter for case in found})} models: {dict(kinds)}; "
        f"at most {seconds:.1f} s and {mebibytes:.0f} MiB"
    )
