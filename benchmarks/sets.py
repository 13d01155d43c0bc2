"""How often sets of classes hold the true one, and how large they are, on the drawings and on photographs.

A closed form learns from eight images a class. The images that it has not learned from are divided at random into
calibration and test images 200 times, the drawings by concept. Without images held back (CV+), a closed form learns
from four drawings a class in eight folds, and its sets are measured on the test drawings, of other concepts.

    python -m benchmarks sets
    python -m benchmarks.sets docs/pictures/trust.png  # a picture of the first, and of the width of intervals
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch
from scipy.stats import betabinom
from torch import Tensor

import adapt
from adapt.common.errors import AdaptError
from adapt.data import Item
from adapt.data.split import Split
from adapt.evaluation.inference import Inference
from adapt.evaluation.intervals import of_share
from adapt.evaluation.sets import measured
from adapt.models.sets import Calibration, Score, Sets
from adapt.recipe import build_recipe
from adapt.training.repeating import crossed, provenance
from adapt.training.run_recipe import run_recipe
from benchmarks.measure import Row

DRAWS, LEVEL, KNOWN = 200, 0.9, 150  # calibration images, or a quarter of all if they are fewer
CROSSED, FOLDS, SHOTS = 20, 8, 4  # draws without images held back
PHOTOGRAPHS = ("solar kinds", "solar grades", "surfaces")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield a row for each set of images and way to calibrate."""
    from benchmarks import photographs

    split = adapt.data.load("emoji")
    progress("emoji")
    yield from _of("emoji, gda on mini-clip", "mini-clip", split.train, split.test, split.class_names)
    for method in ("gda", "nearest_mean"):
        yield _crossed(f"emoji, {method} on mini-clip, without images held back", method)
    for name in PHOTOGRAPHS:
        progress(name)
        parts = adapt.data.load(str(photographs.listing(name, 1)), root="/")
        yield from _of(f"{name}, gda on {photographs.BACKBONE}", photographs.BACKBONE, *_few(parts), parts.class_names)


def _few(split: Split) -> tuple[list[Item], list[Item]]:
    """Return eight training images of each class, and all other images."""
    few, count = list[Item](), dict[str, int]()
    for item in split.train:
        count[item.answer] = count.get(item.answer, 0) + 1
        few += [item] * (count[item.answer] <= 8)
    return few, [item for item in split.items() if item not in few]


def _of(
    title: str, name: str, train: Sequence[Item], rest: Sequence[Item], class_names: Sequence[str]
) -> Iterator[Row]:
    model = adapt.wrap(adapt.load_backbone(name, "cpu"), adapt.methods.GDA(), class_names)
    adapt.fit(model, train, progress=False)
    logits = Inference().all_logits(model, rest).float()
    labels, groups = adapt.tasks.of(rest).numbers(rest, class_names), [item.kept_with for item in rest]
    for by_class in (False, True):
        for score in get_args(Score) if not by_class else ("lac",):
            yield _row(f"{title}, {score}{', by class' * by_class}", logits, labels, groups, score, by_class)
    yield _row(f"{title}, lac, answered together", logits, labels, groups, "lac", together=True)


def _row(
    case: str,
    logits: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    score: Score,
    by_class: bool = False,
    level: float = LEVEL,
    together: bool = False,
) -> Row:
    drawn = torch.Generator().manual_seed(0)
    names = list(dict.fromkeys(groups))
    number = torch.tensor([names.index(group) for group in groups])
    known, classes = min(KNOWN, len(names) // 4), logits.shape[1]
    if by_class:
        known = len(names) // 2
    coverage, sizes, within = list[float](), list[float](), list[bool]()
    wanted = -(-level * (known + 1) // 1)
    for _ in range(DRAWS):
        inside = torch.zeros(len(names), dtype=torch.bool)
        inside[torch.randperm(len(names), generator=drawn)[:known]] = True
        calibration = inside[number]
        own = [group for group, each in zip(groups, calibration.tolist(), strict=True) if each]
        if together:
            kept = Calibration(logits[calibration], labels[calibration], number[calibration])
            found, answers = Sets(score, by_class, (), (), "", calibration=kept).beside(logits[~calibration])
        else:
            found = Sets.of(logits[calibration].softmax(-1), labels[calibration], own, score, by_class, "")
            answers = logits[~calibration].log_softmax(-1)
        held, label = found.hold(answers.exp(), level), labels[~calibration]
        right = held.gather(1, label[:, None])[:, 0]
        low, high = betabinom.interval(0.95, len(right), wanted, known + 1 - wanted)
        coverage.append(float(right.double().mean()))
        sizes.append(float(held.sum(1).double().mean()))
        within.append(bool(low <= int(right.sum()) <= high))
    spread = torch.tensor(coverage).quantile(torch.tensor([0.025, 0.975])).tolist()
    mean, size = sum(coverage) / DRAWS, sum(sizes) / DRAWS
    independent = len(names) == len(groups) and not (by_class or together)
    band = f", {100 * sum(within) / DRAWS:.1f} % of draws inside the beta-binomial band" * independent
    return {
        "case": case, "draws": DRAWS, "calibration_groups": known, "expected": wanted / (known + 1), "coverage": mean,
        "spread": spread, "inside": sum(within) / DRAWS if independent else None, "size": size,
        "text": (
            f"{known} {'images' if len(names) == len(groups) else 'concepts'}: {100 * mean:.1f} % hold the true class "
            f"({100 * wanted / (known + 1):.1f} expected; draws {100 * spread[0]:.1f} to {100 * spread[1]:.1f}){band}, "
            f"{size:.2f} of {classes} classes"
        ),
    }  # fmt: skip


def _crossed(case: str, method: str) -> Row:
    """Return the row of sets without images held back (CV+); a draw with a class in one fold alone is left out."""
    coverage, sizes, bounds, refused = list[float](), list[float](), list[float](), 0
    test, backbone = adapt.data.load("emoji").test, adapt.load_backbone("mini-clip", "cpu")
    for seed in range(1, 10 * CROSSED):
        recipe = {"method": {"name": method}, "backbone": "mini-clip", "device": "cpu", "seed": seed}
        recipe["data"] = {"source": "emoji", "shots": SHOTS}
        with TemporaryDirectory() as folder:
            run_recipe(build_recipe(recipe, "this"), Path(folder) / "run", progress=False, backbone=backbone)
            try:
                model, found = crossed(provenance(Path(folder) / "run"), FOLDS, progress=False)
            except AdaptError:
                refused += 1
                continue
        model.answers = replace(model.answers, sets=found)
        held = measured(model, test, LEVEL)
        coverage.append(held.coverage)
        sizes.append(held.size)
        bounds.append(found.least(LEVEL))
        if len(coverage) == CROSSED:
            break
    mean, size, classes = sum(coverage) / CROSSED, sum(sizes) / CROSSED, len(model.class_names)
    return {
        "case": case, "draws": CROSSED, "refused": refused, "bound": max(bounds), "coverage": mean,
        "spread": [min(coverage), max(coverage)], "size": size,
        "text": (
            f"{SHOTS} images a class, {FOLDS} folds: {100 * mean:.1f} % hold the true class (at least "
            f"{100 * max(bounds):.1f} promised; draws {100 * min(coverage):.1f} to {100 * max(coverage):.1f}), "
            f"{size:.2f} of {classes} classes; {refused} draws refused"
        ),
    }  # fmt: skip


def draw(file: str) -> None:
    """Draw coverage and size of the sets on the drawings over the level, and how wide intervals are, to `file`."""
    from matplotlib.figure import Figure

    split = adapt.data.load("emoji")
    task = adapt.tasks.of(split.test)
    model = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.GDA(), split.class_names)
    adapt.fit(model, split.train, progress=False)
    logits = Inference().all_logits(model, split.test).float()
    labels, groups = task.numbers(split.test, split.class_names), [item.kept_with for item in split.test]
    levels = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    found = [_row("", logits, labels, groups, "lac", level=level) for level in levels]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    sets, widths = figure.subplots(1, 2)
    per_cent = [100 * level for level in levels]
    sets.plot(per_cent, per_cent, color="gray", ls="--", lw=1, label="asked for")
    sets.plot(per_cent, [100 * each["coverage"] for each in found], marker="o", label="sets with the true class, %")
    low, high = ([100 * each["spread"][end] for each in found] for end in (0, 1))
    sets.fill_between(per_cent, low, high, alpha=0.15)
    sets.plot(per_cent, [100 * each["size"] / 24 for each in found], marker="s", label="classes in a set, % of 24")
    sets.set_xlabel("level, %")
    sets.legend(fontsize="small")
    counts = [20, 50, 100, 200, 500, 1000, 2000, 5000]
    for share in (0.5, 0.8, 0.95):
        ends = [of_share(torch.arange(n) < round(share * n), [*map(str, range(n))]) for n in counts]
        widths.plot(counts, [50 * (high - low) for low, high in ends], marker="o", label=f"accuracy {100 * share:g} %")
    widths.set_xscale("log")
    widths.set_xticks(counts, list(map(str, counts)), fontsize="small")
    widths.set_xlabel("independent test images")
    widths.set_ylabel("half of the interval at 95 %, points")
    widths.legend(fontsize="small")
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    draw(sys.argv[1])
