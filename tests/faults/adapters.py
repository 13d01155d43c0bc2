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

import torch
from adapters_1_0 import make
from checks import perturb
from faults import corrupt, outcomes
from faults.outcomes import Outcome
from torch import Tensor

import adapt

NAMES = tuple(make.makers())


@dataclass(frozen=True)
class Case:
    """One damaged file; an `unsigned` one is of format 1.0, which had no checksum."""

    adapter: str
    damage: str
    unsigned: bool
    seed: int
    outcome: Outcome

    @property
    def bad(self) -> bool:
        """An unsigned file may say something else, since nothing tells it from one that was saved so."""
        allowed = ("refused", "equal", "changed") if self.unsigned else ("refused", "equal")
        too_much = self.outcome.seconds > 10 or self.outcome.mebibytes > 1024
        return self.outcome.kind not in allowed or too_much


@cache
def saved(name: str) -> tuple[bytes, Any, Tensor]:
    """The file of a model, the backbone to load it on, and its logits."""
    backbone, method, class_names = make.makers()[name]()
    torch.manual_seed(0)
    model = perturb(adapt.wrap(backbone, method, class_names)).eval()
    model.metadata = make.METADATA
    with TemporaryDirectory() as folder:
        return model.save(Path(folder) / "a.safetensors").read_bytes(), backbone, make.logits(model)


def cases(name: str, damages: Sequence[corrupt.Damage], seeds: Iterable[int]) -> Iterator[Case]:
    """For each seed one damage of each kind, to a file with a checksum and to one without."""
    content, backbone, expected = saved(name)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        for seed, damage, unsigned in product(seeds, damages, (False, True)):
            whole = corrupt.without_checksum(content) if unsigned else content
            made = damage(whole, random.Random(f"{name} {damage.__name__} {seed} {unsigned}"))
            if made != whole:
                path.write_bytes(made)
                found = outcomes.of(lambda: outcomes.loaded(path, backbone, expected, make.logits))
                yield Case(name, damage.__name__, unsigned, seed, found)


def summary(found: Sequence[Case]) -> str:
    kinds = Counter(case.outcome.kind for case in found if not case.unsigned)
    unsigned = Counter(case.outcome.kind for case in found if case.unsigned)
    seconds = max(case.outcome.seconds for case in found)
    mebibytes = max(case.outcome.mebibytes for case in found)
    return (
        f"{len(found)} damaged adapters of {len({case.adapter for case in found})} models: {dict(kinds)}; "
        f"without a checksum: {dict(unsigned)}; at most {seconds:.1f} s and {mebibytes:.0f} MiB"
    )
