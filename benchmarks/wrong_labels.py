"""Objectives of classes where a part of the labels is wrong: test accuracy of each method, beside cross-entropy.

A training takes seconds to minutes, and there are thousands: each result is kept in `KEPT`, and taken from there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import adapt
from adapt.choosing.advice import advise
from adapt.common import plain
from adapt.data import Item, Split
from adapt.models.features import item_features
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, backbone, drawings, right, row_of, trained
from benchmarks.measure import Row

KEPT = Path("build/wrong_labels.jsonl")
SEEDS, SHOTS = (1, 2, 3, 4, 5), (4, 16)
ON_FEATURES = ("coop", "task_res", "kgcoop", "prograd", "tcp", "clap", "clip_adapter")
MORE = ("coop", "task_res")  # with other shares of wrong labels, objectives and rates
CLOSED, WITH_WORDS = ("gda", "lda", "linear_probe"), ("lda", "linear_probe")  # forms without an objective
THROUGH_TOWERS = ("lora", "maple")  # with fewer seeds, as a training takes minutes
CLEAN, QUARTER = (0.0, False), (0.25, False)
OTHER_NOISE = ((0.1, False), (0.5, False), (0.25, True))
PLAIN, OURS, OTHERS = "cross-entropy", "arcsin", ("accuracy", "gce(0.7)", "group(4)", "group(64)")
ZERO_SHOT = 38.3  # of the bundled backbone on the test drawings
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
    """Return items of which a `share` has the label of another class."""
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
    changes: list[tuple[str, object]] = [("seed", case.seed), ("backbone", "mini-clip")]
    recipe = read_recipe(case.recipe, changes, SEEN)
    if recipe.train is None:
        changes += [("method.words", None)] * (case.recipe in WITH_WORDS)
    else:
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

    def row(recipe: str, shots: int, noise: tuple[float, bool], objective: str = OURS, **changes: Any) -> Row:
        return compared(recipe, shots, noise, objective, progress=progress, **changes)

    yield suspected()
    for recipe in CLOSED:
        yield closed(recipe, progress)
    for recipe in ON_FEATURES:
        for noise in (QUARTER, CLEAN):
            yield row(recipe, SHOTS[-1], noise)
    for recipe in MORE:
        for noise in OTHER_NOISE:
            yield row(recipe, SHOTS[-1], noise)
    for recipe in ON_FEATURES:
        for noise in (QUARTER, CLEAN):
            yield row(recipe, SHOTS[0], noise)
    for recipe in MORE:
        for noise in (QUARTER, CLEAN):
            for shots in SHOTS:
                yield row(recipe, shots, noise, factors=FACTORS)
    for recipe in THROUGH_TOWERS:
        yield row(recipe, SHOTS[-1], QUARTER, seeds=SEEDS[:3])
    for objective in OTHERS:
        for recipe in MORE:
            for noise in (QUARTER, CLEAN):
                yield row(recipe, SHOTS[-1], noise, objective)
    for recipe in (each for each in ON_FEATURES if each not in MORE):
        for noise in (QUARTER, CLEAN):
            for shots in SHOTS:
                yield row(recipe, shots, noise, factors=FACTORS)
    for recipe in THROUGH_TOWERS:
        yield row(recipe, SHOTS[-1], CLEAN, seeds=SEEDS[:3])


def closed(recipe: str, progress: Callable[[str], None]) -> Row:
    """Return a row on a method in closed form, by the share of wrong labels."""
    cells = {}
    for share in (0.0, 0.1, 0.25, 0.5):
        cases = [Case(recipe, SHOTS[-1], share, False, "", 1.0, seed) for seed in SEEDS]
        tests = [found["test"] for found in results(cases, progress).values()]
        cells[f"{share:.0%}"] = f"{share:.0%} wrong {mean(tests):.1f}"
    return row_of(f"{recipe}, {SHOTS[-1]} shots", cells)


def suspected() -> Row:
    """Return a row on how many of a quarter of wrong labels `recommend` lists as suspects, over the seeds."""
    found = list[tuple[int, int, int, int]]()
    model = adapt.wrap(backbone(), adapt.methods.ZeroShot(), drawings(SEEN).class_names)
    for seed in SEEDS:
        clean = drawings(SEEN).few_shot(SHOTS[-1], seed).train
        split = replace(draw(Case("", SHOTS[-1], *QUARTER, "", 1.0, seed)), val=(), test=())
        wrong = {item.path for item, right_one in zip(split.train, clean, strict=True) if item != right_one}
        features = {"train": item_features(model, split.train, workers=0)}
        listed = [str(row["path"]) for row in advise(split, features, (), None).suspects]
        first = len(wrong.intersection(listed[: len(wrong) // 2]))
        found.append((len(wrong), len(listed), len(wrong.intersection(listed)), first))
    wrongs, listed_, right_, first_ = (f"{mean(each):.0f}" for each in zip(*found, strict=True))
    text = f"{right_} of {wrongs} wrong labels among {listed_} suspects; of the first half of {wrongs}, {first_}"
    return {"case": "suspects, a quarter of the labels wrong", "text": text}


def compared(
    recipe: str,
    shots: int,
    noise: tuple[float, bool],
    objective: str,
    *,
    factors: Sequence[float] = (1.0,),
    seeds: Sequence[int] = SEEDS,
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


def draw_to(path: str) -> None:
    """Draw the test accuracy over the share of wrong labels, by cross-entropy and by arcsin, to a picture."""
    from matplotlib.figure import Figure

    shares = (0.0, 0.1, 0.25, 0.5)
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    for axes, (recipe, title) in zip(figure.subplots(1, 2, sharey=True), (("coop", "CoOp"), ("task_res", "TaskRes"))):
        for objective, colour, style in ((OURS, "#0072b2", "-"), (PLAIN, "#d55e00", "--")):
            cases = [Case(recipe, SHOTS[-1], share, False, objective, 1.0, seed) for share in shares for seed in SEEDS]
            tests = [found["test"] for found in results(cases, lambda text: None).values()]
            by_share = [tests[start : start + len(SEEDS)] for start in range(0, len(tests), len(SEEDS))]
            across = [100 * share for share in shares]
            axes.fill_between(
                across, [min(own) for own in by_share], [max(own) for own in by_share], alpha=0.15, color=colour, lw=0
            )
            axes.plot(across, [mean(own) for own in by_share], style, marker="o", color=colour)
            axes.annotate(
                objective,
                (across[-1], mean(by_share[-1])),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.axhline(ZERO_SHOT, color="#666666", lw=1, ls=":")
        axes.annotate(
            "zero-shot", (0, ZERO_SHOT), xytext=(0, 3), textcoords="offset points", color="#666666", fontsize=9
        )
        axes.set(title=title, xlabel="wrong labels, per cent", xticks=across, xlim=(-2, 72))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy, per cent")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    draw_to(sys.argv[1])
