"""The papers' protocols: for each, the runs that it makes of a recipe, and the figures in its table; and their running.

A protocol that has run has its results in one JSON and one CSV file beside the run directories.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypedDict, cast

from filelock import FileLock

from adapt.common.disk import write_csv, write_json
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.common.progress import readable_time
from adapt.evaluation import stored
from adapt.evaluation.stored import Summary
from adapt.protocols.engines import Engine
from adapt.protocols.plain_runs import is_run
from adapt.protocols.runs import LABELS, TEST_SET, PlannedRun, Row, Target, alike, check, recipe_in
from adapt.recipe import DataSection, Recipe, build_recipe
from adapt.recipe.file import one_length, set_key
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run import environment

ELEVEN = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
)  # fmt: skip

ANOMALY_FIGURES = {
    "image_auroc": "AUROC of images",
    "image_f1_max": "F1-max of images",
    "pixel_auroc": "AUROC of pixels",
    "pro": "PRO",
}

Figures = dict[str, float]

PAPERS_TARGETS = {
    "cross_dataset": ELEVEN[1:],
    "domain_generalisation": ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
}

_UNSAFE = re.compile(r"[^\w.=+-]+")  # in the name of a folder
_TAKEN = {"run", "shots", "seed", "train_set", TEST_SET, LABELS, "source", "average"}


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
    return Protocol("few_shot", recipe, _with_shots(recipe, shots, seeds), ("test",))


def few_normal(recipe: Recipe, shots: Sequence[int], seeds: Sequence[int]) -> Protocol:
    """Return the protocol of anomaly detection, which trains on 1, 2, 4, ... normal images of one object (WinCLIP).

    AnomalyDINO takes the first files for the first seed, the next ones for the next; here they are drawn.
    """
    return Protocol(
        "few_normal", recipe, _with_shots(recipe, shots, seeds, tuple(ANOMALY_FIGURES)), tuple(ANOMALY_FIGURES)
    )


def _with_shots(
    recipe: Recipe, shots: Sequence[int], seeds: Sequence[int], beside: tuple[str, ...] = ()
) -> tuple[PlannedRun, ...]:
    _check_numbers("shots", shots, 1)
    return tuple(
        PlannedRun(f"shots-{count}-seed-{one.seed}", changed(one, data={"shots": count}), beside=beside)
        for count in shots
        for one in _seeded(recipe, seeds)
    )


def base_to_new(recipe: Recipe, seeds: Sequence[int]) -> Protocol:
    """Return the base-to-new protocol, which trains on half of the classes and tests on both halves (CoCoOp).

    The base classes are the first half. Images of each half are classified among the class names of that half. The
    harmonic mean is computed from the mean accuracies over the seeds, as in the papers' tables (CoCoOp, section 4.1).
    """
    new = Target("new", recipe.data.model_copy(update={"classes": "new"}))
    on_base = changed(recipe, data={"classes": "base"})
    runs = tuple(PlannedRun(f"seed-{one.seed}", one, "base", (new,)) for one in _seeded(on_base, seeds))

    def harmonic(mean: Figures) -> Figures:
        return {"harmonic": float(statistics.harmonic_mean([mean["base"], mean["new"]]))}

    return Protocol("base_to_new", recipe, runs, ("base", "new"), harmonic)


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


LOCAL = Engine()
SHORT = 5.0  # seconds for which no time left is shown


class Results(TypedDict):
    """The results of a protocol, as stored in a JSON file."""

    protocol: str
    recipe: JsonObject
    environment: dict[str, object]
    runs: list[Row]
    summary: list[Summary]


def run_protocol(
    protocol: Protocol,
    out: Path,
    engine: Engine = LOCAL,
    progress: Callable[[str], None] | None = None,
    track: Track = (),
) -> Results:
    """Train and test the runs of `protocol` in the folder `out`, write the results to `out`, and return the results.

    Finished runs are not repeated, and an interrupted run is continued. Results of finished runs that are in `out`
    already, such as of other seeds, stay among the results. The trackers in `track` follow each run, as in `fit`.
    Raises AdaptError before training if a run would fail because of its data or method, or if `out` has results of
    another recipe; later if the folder of a run contains a run of another recipe, or if the test images have changed
    between the runs.
    """
    check_alone()
    trackers(track, out)
    check(protocol.runs)
    _earlier(protocol, out)
    rows: list[Row] = []
    started = time.monotonic()
    for row in engine.rows(protocol.runs, out, track):
        rows.append(row)
        if progress is not None:
            shown = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in protocol.figures)
            left = (time.monotonic() - started) / len(rows) * (len(protocol.runs) - len(rows))
            more = f"  (about {readable_time(left)} left)" if left > SHORT else ""
            progress(f"{len(rows)} of {len(protocol.runs)}  {row['run']}: {shown}{more}")
    with FileLock(out / ".results.lock"):  # another command may add its runs
        earlier = _earlier(protocol, out)
        if earlier and progress is not None:
            progress(f"{len(earlier)} finished runs of earlier commands in {out} are among the results")
        rows += earlier
        settings = list(dict.fromkeys(row.get("setting") for row in rows))
        rows.sort(key=lambda row: (row["shots"] or 0, settings.index(row.get("setting")), row["seed"]))
        _check_one_test_set(rows)
        results: Results = {
            "protocol": protocol.name,
            "recipe": protocol.recipe.model_dump(mode="json"),
            "environment": environment() | {"threads": engine.threads},
            "runs": rows,
            "summary": summaries(protocol, rows),
        }
        write_json(out / f"{protocol.name}.json", results)
        columns = dict.fromkeys(key for row in rows for key in row)  # of rows with other targets, or of older versions
        write_csv(out / f"{protocol.name}.csv", [{key: row.get(key) for key in columns} for row in rows])
    return results


def _earlier(protocol: Protocol, out: Path) -> list[Row]:
    """Return the rows of finished runs in `out` that `protocol` does not make again, and that have all its figures."""
    file = out / f"{protocol.name}.json"
    if not file.exists():
        return []
    results = stored.read(file, stored.ProtocolResults, "results of a protocol")
    recipe = recipe_in(file, results["recipe"])
    if recipe is None:
        raise AdaptError(f"this version of adapt cannot read the recipe in {file}: choose another --out")
    if not alike(recipe, protocol.recipe):
        raise AdaptError(f"{out} holds results of another recipe: choose another --out")
    made = {run.name for run in protocol.runs}
    return [
        row
        for row in results["runs"]
        if row["run"] not in made and is_run(out / row["run"]) and row.keys() >= set(protocol.figures)
    ]


def _check_one_test_set(rows: Sequence[Row]) -> None:
    """Raise AdaptError if runs that stand in one average were measured on different test images, or other labels."""
    first_of: dict[tuple[object, str], Row] = {}
    for row in rows:
        for key in row:
            if not key.startswith((TEST_SET, LABELS)) or row[key] is None:  # of an older version
                continue
            first = first_of.setdefault((row.get("setting"), key), row)
            if first[key] != row[key]:
                raise AdaptError(
                    f"the runs {first['run']} and {row['run']} are of different images or labels, as the data changed "
                    "between them: delete the folders of the runs that were made before, and give the command again"
                )


def summaries(protocol: Protocol, rows: Sequence[Row]) -> list[Summary]:
    """Return a summary for each group of result rows that differ only by seed."""
    groups = grouped(((row["shots"], row.get("setting")), row) for row in rows)
    return [_summary(protocol, *key, group) for key, group in groups.items()]


def _summary(protocol: Protocol, shots: int | None, setting: str | None, rows: Sequence[Row]) -> Summary:
    validated = [row["val"] for row in rows if row.get("val") is not None]
    val = statistics.mean(validated) if validated else None
    tried = {} if setting is None else {"setting": setting, "val": val}
    adapted = [{name: row[name] for name in protocol.figures} for row in rows]
    each = [figures | protocol.derive(figures) for figures in adapted]
    together = all(f"together_{name}" in row for name in protocol.figures for row in rows)
    summary = {
        "shots": shots,
        **tried,
        "runs": len(rows),
        "mean": _mean(protocol, adapted),
        "std": {
            name: statistics.stdev(figures[name] for figures in each) if len(each) > 1 else 0.0 for name in each[0]
        },
        "zero_shot": _mean(protocol, rows, "zero_shot_"),
        **({"together": _mean(protocol, rows, "together_")} if together else {}),
    }
    return cast("Summary", summary)


def _mean(protocol: Protocol, rows: Sequence[Mapping[str, Any]], prefix: str = "") -> Figures:
    """Return the mean figures over the rows, of the figures whose names have a prefix, and what follows from them.

    There are none if the rows have none, such as of a baseline that draws no maps.
    """
    if not all(f"{prefix}{name}" in row for row in rows for name in protocol.figures):
        return {}
    mean = {name: statistics.mean(row[f"{prefix}{name}"] for row in rows) for name in protocol.figures}
    return mean | protocol.derive(mean)
