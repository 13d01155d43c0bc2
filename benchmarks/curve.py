"""How often the learning curve says a number of labels, and how often the truth lies within half to twice of it.

Test images, by concept on the drawings, are 35 % of a set; a draw is so many images a class of the others. The truth is
the number of images a class, added at random to those of the draw, whose mean accuracy over eight additions reaches the
target. It is measured up to three times the images of the draw.

    python -m benchmarks curve
    python -m benchmarks.curve docs/pictures/learning_curve.png  # the curve of one draw of the drawings
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from statistics import mean

import numpy as np
import torch

import adapt
from adapt import tasks
from adapt.backbones.base import ImageEncoder
from adapt.choosing.candidates import Candidate, candidates
from adapt.choosing.compare import Comparison
from adapt.data import Item
from adapt.data.decoding.cache import unchanging_images
from adapt.data.split import Split, by_stratum
from benchmarks.measure import Row

SETS = ("emoji", "surfaces", "solar kinds", "solar defects", "solar grades", "cloth")
SHOTS = {"emoji": (4, 8, 16)}
OTHER_SHOTS, DRAWS, TESTED, ADDITIONS, SHARES = (4, 8, 16, 32), 10, 0.35, 8, (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each set of images and number of images a class."""
    from benchmarks import photographs

    torch.set_num_threads(1)
    for name in SETS:
        backbone = "mini-clip" if name == "emoji" else photographs.BACKBONE
        source = name if name == "emoji" else str(photographs.listing(name, 1))
        split, encoder = adapt.data.load(source, root=None if name == "emoji" else "/"), adapt.load_backbone(backbone)
        assert isinstance(encoder, ImageEncoder)
        changes: dict[str, object] = {"backbone": backbone, "data.sampling": "coop", "device": "cpu", "seed": 1}
        listed = candidates(source, changes, False, encoder, tasks.of(split.items()))
        candidate = next(each for each in listed if each.preferred)
        for shots in SHOTS.get(name, OTHER_SHOTS):
            progress(f"{name}, {shots} images a class")
            with ExitStack() as stack:
                stack.enter_context(unchanging_images())
                stack.enter_context(encoder.unchanging())
                drawn = [_draw(split, candidate, encoder, shots, seed) for seed in range(1, DRAWS + 1)]
            said = [each for each in drawn if each["labels"]]
            right = sum(each["truth"] is not None and 0.5 <= each["truth"] / each["labels"] <= 2 for each in said)
            yield {
                "case": f"{name}, {candidate.name} on {backbone}, {shots} images a class", "draws": drawn,
                "said": len(said), "right": right,
                "text": f"a number in {len(said)} of {DRAWS} draws, the truth within half to twice in {right}",
            }  # fmt: skip


def divided(split: Split, seed: int) -> tuple[list[list[Item]], list[Item]]:
    """Return the images to draw from by class, in a random order, and the test images, other groups by a seed."""
    draw, items = random.Random(seed), list(split.items())
    groups = sorted({item.kept_with for item in items})
    tested = set(draw.sample(groups, int(TESTED * len(groups))))
    rest = draw.sample(items, len(items))
    pool = by_stratum(tuple(item for item in rest if item.kept_with not in tested))
    return pool, [item for item in items if item.kept_with in tested]


def _draw(split: Split, candidate: Candidate, encoder: ImageEncoder, shots: int, seed: int) -> Row:
    pool, test = divided(split, seed)
    every = tuple(item for own in pool for item in own)
    comparison = Comparison(
        replace(split, train=every, val=(), test=tuple(test)), {candidate.recipe.backbone: encoder}, 2, seed
    )
    few = tuple(item for own in pool for item in own[:shots])
    drawn = Comparison(
        replace(split, train=few, val=(), test=tuple(test)), {candidate.recipe.backbone: encoder}, 2, seed
    )
    curve = drawn.curve(candidate, None)
    truth = None
    if curve.labels:
        truth = _truth(comparison, candidate, pool, shots, curve.target, curve.points[-1].accuracy)
    return asdict(curve) | {"shots": shots, "seed": seed, "truth": truth}


def _truth(
    comparison: Comparison, candidate: Candidate, pool: Sequence[list[Item]], shots: int, target: float, now: float
) -> float | None:
    """Return how many more images a class reach the target on average, by interpolation, or None if none do."""
    sizes, reached, draw = [0.0], [now], random.Random(0)
    for share in SHARES:
        added = [
            [
                item
                for own in pool
                for item in own[:shots] + draw.sample(own[shots:], min(round(share * shots), len(own[shots:])))
            ]
            for _ in range(ADDITIONS)
        ]
        sizes.append(mean(map(len, added)) / len(pool) - shots)
        reached.append(max(reached[-1] + 1e-9, mean(comparison._on_test(candidate, train) for train in added)))
        if reached[-1] >= target:
            return float(np.interp(target, reached, sizes))
    return None


if __name__ == "__main__":
    pass
