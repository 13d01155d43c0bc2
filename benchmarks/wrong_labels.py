"""Objectives of classes where a part of the labels is wrong: test accuracy of each method, beside cross-entropy.

A training takes seconds to minutes, and there are thousands: each result is kept in `KEPT`, and taken from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

from adapt.common import plain
from adapt.data import Item, Split
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, drawings, right, row_of, trained
from benchmarks.measure import Row

KEPT = Path("build/wrong_labels.jsonl")
SEEDS, SHOTS = (1, 2, 3, 4, 5), (4, 16)
ON_FEATURES = ("coop", "task_res", "kgcoop", "prograd", "tcp", "clap", "clip_adapter", "tip_adapter/trained")
MORE = ("coop", "task_res")  # with other shares of wrong labels, objectives and rates
THROUGH_TOWERS = ("lora", "maple")  # with fewer seeds, as a training takes minutes
CLEAN, QUARTER = (0.0, False), (0.25, False)
OTHER_NOISE = ((0.1, False), (0.5, False), (0.25, True))
PLAIN, OURS, OTHERS = "cross-entropy", "arcsin", ("accuracy", "gce(0.7)", "group(4)", "group(64)")
FACTORS = (1 / 3, 1.0, 3.0)  # of the recipe's rate
T = {3: 4.303, 5: 2.776}  # half a 95 % interval of as many differences, in standard errors


@dataclass(frozen=True)
class Case:
    """A training: a recipe, how many labels are wrong and how, and the objective; `factor` multiplies the rate."""

    recipe: str
    shots: int
    share: float
    to_one: bool  # wrong labels are always the next class, or else any other
    objective: str
    factor: float
    seed: int


def spoiled(items: Sequence[Item], names: Sequence[str], share: float, to_one: bool, seed: int) -> tuple[Item, ...]:
    """Return items of which a `share` in each class, rounded over all, has the label of another class."""
    stream, changed = Random(f"wrong/{seed}"), list(items)
    for place in stream.sample(range(len(items)), round(share * len(items))):
        label: Any = items[place].label
        own = names.index(label.name)
        other = (
            names[(own + 1) % len(names)] if to_one else stream.choice([name for name in names if name != label.name])
        )
        changed[place] = replace(items[place], label=replace(label, name=other))
    return tuple(changed)


def draw(case: Case) -> Split:
    """Return the few-shot split of a case, whose validation images have as many wrong labels as its training images."""
    split = drawings(SEEN).few_shot(case.shots, case.seed)
    wrong = case.share, case.to_one, case.seed
    train, val = (spoiled(part, split.class_names, *wrong) for part in (split.train, split.val))
    return replace(split, train=train, val=val)


def measured(case: Case) -> dict[str, float]:
    """Return the accuracy on the noisy validation images and on the test images, in per cent."""
    recipe = read_recipe(case.recipe, [("seed", case.seed), ("backbone", "mini-clip")], SEEN)
    assert recipe.train is not None
    changes: list[tuple[str, object]] = [("seed", case.seed), ("backbone", "mini-clip")]
    changes += [("train.objective", case.objective)]
    changes += [("train.lr", case.factor * recipe.train.lr)] * (case.factor != 1)
    split = draw(case)
    model = trained(read_recipe(case.recipe, changes, SEEN), split)
    return {name: 100 * float(right(model, part).mean()) for name, part in (("val", split.val), ("test", split.test))}


def results(cases: Sequence[Case], progress: Callable[[str], None]) -> dict[Case, dict[str, float]]:
    """Return the accuracies of all cases, training those that are not kept."""
    kept: dict[Case, dict[str, float]] = {}
    if KEPT.is_file():
        for line in KEPT.read_text().splitlines():
            row = json.loads(line)
            kept[Case(**row["case"])] = row["accuracy"]
    KEPT.parent.mkdir(exist_ok=True)
    for case in cases:
        if case not in kept:
            progress(str(case))
            kept[case] = measured(case)
            with KEPT.open("a") as file:
                file.write(plain.dump({"case": vars(case), "accuracy": kept[case]}) + "\n")
    return {case: kept[case] for case in cases}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the test accuracy of each method by cross-entropy and by another objective, and the paired difference."""
    for shots in reversed(SHOTS):
        for noise in (QUARTER, CLEAN):
            for recipe in ON_FEATURES:
                yield compared(recipe, shots, noise, OURS, (1.0,), SEEDS, progress)
    for recipe in MORE:
        for noise in (QUARTER, CLEAN):
            for shots in SHOTS:
                yield compared(recipe, shots, noise, OURS, FACTORS, SEEDS, progress)
        for noise in OTHER_NOISE:
            for shots in SHOTS:
                yield compared(recipe, shots, noise, OURS, (1.0,), SEEDS, progress)
        for objective in OTHERS:
            for noise in (CLEAN, QUARTER):
                yield compared(recipe, SHOTS[-1], noise, objective, (1.0,), SEEDS, progress)
    for recipe in THROUGH_TOWERS:
        for noise in (QUARTER, CLEAN):
            yield compared(recipe, SHOTS[-1], noise, OURS, (1.0,), SEEDS[:3], progress)
    for noise in (QUARTER, CLEAN):
        for recipe in ON_FEATURES:
            for shots in SHOTS:
                yield compared(recipe, shots, noise, OURS, FACTORS, SEEDS, progress)


def compared(
    recipe: str,
    shots: int,
    noise: tuple[float, bool],
    objective: str,
    factors: Sequence[float],
    seeds: Sequence[int],
    progress: Callable[[str], None],
) -> Row:
    """Return a row on a recipe by cross-entropy and by `objective`, each at the factor that is best on validation."""
    found = dict[str, list[float]]()
    for each in (PLAIN, objective):
        cases = [[Case(recipe, shots, *noise, each, factor, seed) for factor in factors] for seed in seeds]
        known = results([case for own in cases for case in own], progress)
        found[each] = [known[max(own, key=lambda case: known[case]["val"])]["test"] for own in cases]
    apart = [ours - plain for ours, plain in zip(found[objective], found[PLAIN], strict=True)]
    half = T[len(seeds)] * stdev(apart) / len(seeds) ** 0.5
    share, to_one = noise
    wrong = f"{share:.0%} wrong{', one-sided' * to_one}"
    rates = "recipe's rate" if len(factors) == 1 else f"best of {len(factors)} rates"
    cells = {each: f"{each} {mean(values):.1f}" for each, values in found.items()}
    return row_of(f"{recipe}, {shots} shots, {wrong}, {rates}", {**cells, "apart": f"{mean(apart):+.1f} ± {half:.1f}"})
