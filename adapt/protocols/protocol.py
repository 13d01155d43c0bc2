"""The papers' protocols: for each, the runs that it makes of a recipe, and the figures in its table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from adapt.common.errors import AdaptError
from adapt.protocols.runs import PlannedRun, Target
from adapt.recipe import DataSection, Recipe, build_recipe
from adapt.recipe.file import one_length, set_key

ELEVEN = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
)  # fmt: skip

Figures = dict[str, float]

PAPERS_TARGETS = {
    "cross_dataset": ELEVEN[1:],
    "domain_generalisation": ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
}

_UNSAFE = re.compile(r"[^\w.=+-]+")  # in the name of a folder
_TAKEN = {"run", "shots", "seed", "train_set", "test_set", "source", "average"}


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol: its runs, the names of accuracies (`figures`), and a function for derived figures."""

    name: str
    recipe: Recipe
    runs: tuple[PlannedRun, ...]
    figures: tuple[str, ...]
    derive: Callable[[Figures], Figures] = lambda figures: {}


def few_shot(recipe: Recipe, shots: Sequence[int], seeds: Sequence[int]) -> Protocol:
    """Return the few-shot protocol, which trains on 1, 2, 4, ... images per class (CoOp, section 4.1)."""
    _check_numbers("shots", shots, 1)
    return Protocol(
        "few_shot",
        recipe,
        tuple(
            PlannedRun(f"shots-{count}-seed-{one.seed}", changed(one, data={"shots": count}))
            for count in shots
            for one in _seeded(recipe, seeds)
        ),
        ("test",),
    )


def base_to_new(recipe: Recipe, seeds: Sequence[int]) -> Protocol:
    """Return the base-to-new protocol, which trains on half of the classes and tests on both halves (CoCoOp).

    The base classes are the first half. Images of each half are classified among the class names of that half. The
    harmonic mean is computed from the mean accuracies over the seeds, as in the papers' tables (CoCoOp, section 4.1).
    """
    new = Target("new", recipe.data.model_copy(update={"classes": "new"}))
    on_base = changed(recipe, data={"classes": "base"})
    runs = tuple(PlannedRun(f"seed-{one.seed}", one, "base", (new,)) for one in _seeded(on_base, seeds))
    return Protocol(
        "base_to_new", recipe, runs, ("base", "new"), lambda mean: {"harmonic": harmonic(mean["base"], mean["new"])}
    )


def transfer(name: str, recipe: Recipe, targets: Sequence[Target], seeds: Sequence[int]) -> Protocol:
    """Return a protocol of transfer or domain generalisation, which trains on one data set and tests on all."""
    names = tuple(target.name for target in targets)
    if not names or len(set(names)) < len(names):
        raise AdaptError(f"{name} has the targets {list(names)}; expected different names: give targets by --to")
    for taken in _TAKEN.intersection(names):
        raise AdaptError(f"the folder {taken!r} cannot be a target, because the results have such a column: rename it")
    runs = tuple(PlannedRun(f"seed-{one.seed}", one, "source", tuple(targets)) for one in _seeded(recipe, seeds))

    def average(mean: Figures) -> Figures:
        return {"average": sum(mean[each] for each in names) / len(names)}

    return Protocol(name, recipe, runs, ("source", *names), average)


def leave_one_out(recipe: Recipe, domains: Sequence[str], seeds: Sequence[int]) -> Protocol:
    """Return the leave-one-out protocol, which tests on each domain after training on all other domains (DomainBed).

    Shots (a number of images per class) are drawn from the training domains.
    """
    if len(domains) < 2 or len(set(domains)) < len(domains):
        raise AdaptError(
            f"leave one out needs two or more different domains, but {recipe.data.source} has {list(domains)}: give "
            "domains in a column `domain` of a .csv, or as folders by domains:FOLDER"
        )
    runs = tuple(
        PlannedRun(f"{_UNSAFE.sub('_', domain)}-seed-{one.seed}", one, setting=domain)
        for domain in domains
        for one in _seeded(changed(recipe, data={"leave_out": domain}), seeds)
    )
    if "average" in domains or len({run.name for run in runs}) < len(runs):
        raise AdaptError(
            f"the domains {list(domains)} have names that clash as folders or columns of the results: rename the "
            "domains (average is a column of the results)"
        )
    return Protocol("leave_one_out", recipe, runs, ("test",))


def phases(recipe: Recipe, sections: Sequence[DataSection], seeds: Sequence[int]) -> Protocol:
    """Return the continual-learning protocol, which trains one adapter on `sections` of data one after the other.

    `2 after 3` is the accuracy on section 2, among its own class names, after training on section 3. `kept` is the
    final accuracy on a section divided by the first accuracy on the section, averaged over all sections but the last.
    """
    if len(sections) < 2:
        raise AdaptError(f"there are {len(sections)} phases; expected two or more: give more data, or divide classes")
    count = len(sections)
    runs: list[PlannedRun] = []
    for one in _seeded(recipe, seeds):
        last: PlannedRun | None = None
        for phase, section in enumerate(sections, 1):
            earlier = tuple(
                Target(_figure(before, phase), known) for before, known in enumerate(sections[: phase - 1], 1)
            )
            learned = changed(one, data=section.model_dump(mode="json"))
            name = f"phase-{phase}-seed-{one.seed}"
            last = PlannedRun(name, learned, _figure(phase, phase), earlier, after=last)
        assert last is not None
        runs.append(last)
    figures = tuple(_figure(part, phase) for phase in range(1, count + 1) for part in range(1, phase + 1))

    def kept(mean: Figures) -> Figures:
        shares = [mean[_figure(part, count)] / (mean[_figure(part, part)] or 1.0) for part in range(1, count)]
        return {"kept": sum(shares) / len(shares)}

    return Protocol("phases", recipe, tuple(runs), figures, kept)


def _figure(part: int, phase: int) -> str:
    return f"{part} after {phase}"


def sweep(recipe: Recipe, settings: Mapping[str, Sequence[object]], seeds: Sequence[int]) -> Protocol:
    """Return the sweep protocol, which trains with every combination of `settings` (lists of values by key).

    A key is a dotted name such as train.lr. Every combination is trained for each of `seeds`. Choose a combination by
    validation accuracy, because the best of many test accuracies is an optimistic estimate.
    """
    runs = []
    for values in product(*settings.values()):
        chosen = dict(zip(settings, values, strict=True))
        setting = ", ".join(f"{key}={value}" for key, value in chosen.items())
        raw = recipe.model_dump(mode="json", exclude_unset=True)
        for key, value in chosen.items():
            set_key(raw, (key, value))
        one_length(raw, list(chosen.items()))
        tried = build_recipe(raw, "the sweep's recipe")
        for one in _seeded(tried, seeds):
            name = "-".join([*(_UNSAFE.sub("_", part) for part in setting.split(", ") if part), f"seed-{one.seed}"])
            runs.append(PlannedRun(name, one, setting=setting))
    if len({run.name for run in runs}) < len(runs):
        raise AdaptError(f"a value of the sweep appears twice: give different values for {', '.join(settings)}")
    return Protocol("sweep", recipe, tuple(runs), ("test",))


def harmonic(base: float, new: float) -> float:
    """Return the harmonic mean of two accuracies, or 0 if either accuracy is 0."""
    return 2 * base * new / (base + new) if base and new else 0.0


def _seeded(recipe: Recipe, seeds: Sequence[int]) -> list[Recipe]:
    _check_numbers("seeds", seeds, 0)
    return [changed(recipe, seed=seed) for seed in seeds]


def changed(recipe: Recipe, data: dict[str, object] | None = None, **keys: object) -> Recipe:
    """Return a validated copy of `recipe` with new values of top-level `keys` and of keys in the section `data`."""
    raw = recipe.model_dump(mode="json") | keys
    raw["data"] |= data or {}
    return build_recipe(raw, "the protocol's recipe")


def _check_numbers(what: str, numbers: Sequence[int], least: int) -> None:
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < least:
        raise AdaptError(f"{what} are {list(numbers)}; expected different numbers from {least} on, such as 1,2,3")
