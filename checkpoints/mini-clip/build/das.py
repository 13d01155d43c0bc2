"""Skipped blocks on the bundled set by the shipped recipe: `python das.py WORK` fills the card and draws the plot.

Runs that exist in the work folder are not repeated, so an interrupted measurement goes on.
"""

import argparse
import json
import random
import statistics
from itertools import combinations
from pathlib import Path

import card
import torch
from matplotlib.figure import Figure

from adapt import adapter
from adapt.bench.das import BATCH, seconds
from adapt.evaluation.flops import image_flops
from adapt.evaluation.tables import as_markdown
from adapt.recipe import find_recipe, read_recipe
from adapt.training.run_recipe import run_recipe

TARGET = Path(__file__).resolve().parents[1]
RECIPE = "das/emoji"
SEEDS = (1, 2, 3)
SKIPPED = (0, 1, 2, 3)
BLOCKS = 6
RANDOM, RANDOM_SKIPS, RANDOM_SEED = 10, 2, 1  # choices of two blocks, trained on the images of one seed
ROUNDS = 60


def measure(out: Path, *changes: str) -> dict:
    """The metrics of the recipe with `changes`, trained in `out`."""
    if not (out / "metrics.json").exists():
        recipe = read_recipe(find_recipe(RECIPE), changes)
        run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False)
        print(f"measured {out.name}", flush=True)
    return json.loads((out / "metrics.json").read_text())


def run(work: Path, skipped: int, seed: int) -> dict:
    """What one search and one training gave; without skipped blocks there is no search."""
    metrics = measure(folder(work, skipped, seed), f"method.skip={skipped}", f"seed={seed}")
    found = {"skipped": skipped, "seed": seed, "accuracy": percent(metrics), "zero_shot": percent(metrics, "zero_shot")}
    if skipped:
        search = metrics["search"]
        found |= {"chosen": search["chosen"], "updates": search["updates"]}
        found |= {"search_share": search["share_of_training"], "search_seconds": search["seconds"]}
    return found | {"training_seconds": metrics["seconds"], "train_set": metrics["train_set"]}


def folder(work: Path, skipped: int, seed: int) -> Path:
    """Where that run is kept."""
    return work / f"skip-{skipped}-{seed}"


def percent(metrics: dict, model: str = "adapted") -> float:
    """Accuracy on the test images."""
    return round(100 * metrics[model]["accuracy"], 2)


def random_choices(work: Path) -> list[dict]:
    """Blocks drawn by a fixed seed and trained without a search, by the same settings."""
    every = list(combinations(range(BLOCKS), RANDOM_SKIPS))
    found = []
    for choice in sorted(random.Random(0).sample(every, RANDOM)):
        names = [f"vision.{index}" for index in choice]
        out = work / f"random-{'-'.join(map(str, choice))}"
        changes = (f"method.skip={RANDOM_SKIPS}", f"method.skipped=[{', '.join(names)}]", f"seed={RANDOM_SEED}")
        found.append({"skipped": names, "seed": RANDOM_SEED, "accuracy": percent(measure(out, *changes))})
    return found


def encoders(work: Path) -> list[dict]:
    """Operations and seconds of the trained vision towers of the first seed, one row for each number of blocks."""
    file = work / "encoders.json"
    if not file.exists():
        models = [adapter.load(folder(work, skipped, SEEDS[0]) / "adapter.safetensors") for skipped in SKIPPED]
        operations = [image_flops(model) for model in models]
        taken = seconds(models, ROUNDS)
        rows = [dict(zip(("skipped", "flops", "seconds"), row)) for row in zip(SKIPPED, operations, taken)]
        file.write_text(json.dumps(rows, indent=2) + "\n")
    return json.loads(file.read_text())


def table(results: dict) -> list[list[str]]:
    """A row for each number of skipped blocks, the unskipped adapter model first."""
    rows = [
        ["blocks skipped", "accuracy", "chosen, by seed", "gate updates", "search's share of training time"]
        + ["FLOPs an image", "saved", f"seconds, batch of {BATCH}", "saved"]
    ]
    whole = results["encoders"][0]
    for encoder in results["encoders"]:
        runs = [each for each in results["runs"] if each["skipped"] == encoder["skipped"]]
        accuracies = [each["accuracy"] for each in runs]
        row = [f"{encoder['skipped']} of {BLOCKS}"]
        row.append(f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}")
        if encoder["skipped"]:
            chosen = ["+".join(name.removeprefix("vision.") for name in each["chosen"]) for each in runs]
            row += [", ".join(chosen), span([each["updates"] for each in runs], "d")]
            row.append(f"{span([100 * each['search_share'] for each in runs], '.0f')} %")
        else:
            row += ["", "", ""]
        for key, shown in (("flops", f"{encoder['flops'] / 1e6:.0f} M"), ("seconds", f"{encoder['seconds']:.4f}")):
            saved = 1 - encoder[key] / whole[key]
            row += [shown, f"{100 * saved:.1f} %" if encoder["skipped"] else ""]
        rows.append(row)
    return rows


def span(values: list, form: str) -> str:
    """One figure, or the least and the largest."""
    ends = dict.fromkeys((format(min(values), form), format(max(values), form)))
    return "–".join(ends)


def choices(results: dict) -> str:
    """The search's choice against the random ones, as a sentence and a table."""
    (own,) = (each for each in results["runs"] if (each["skipped"], each["seed"]) == (RANDOM_SKIPS, RANDOM_SEED))
    every = sorted(results["random"], key=lambda each: -each["accuracy"])
    mean = statistics.mean(each["accuracy"] for each in every)
    cells = [["+".join(name.removeprefix("vision.") for name in each["skipped"]) for each in every]]
    cells.append([f"{each['accuracy']:.1f}" for each in every])
    chosen = "+".join(name.removeprefix("vision.") for name in own["chosen"])
    return (
        f"Two blocks on seed {RANDOM_SEED}: the search took {chosen}, {own['accuracy']:.1f} %; "
        f"{len(every)} random choices by the same settings give {mean:.1f} % on average:\n\n{as_markdown(cells)}"
    )


def plot(results: dict, file: Path) -> None:
    """Accuracy against the share of operations that is saved: means, the seeds as dots, random choices faint."""
    whole = results["encoders"][0]["flops"]
    saved = {each["skipped"]: 100 * (1 - each["flops"] / whole) for each in results["encoders"]}
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    means = []
    for skipped in SKIPPED:
        accuracies = [each["accuracy"] for each in results["runs"] if each["skipped"] == skipped]
        means.append(statistics.mean(accuracies))
        axes.scatter([saved[skipped]] * len(accuracies), accuracies, s=16, color="#1f77b4", zorder=3)
    (line,) = axes.plot(list(saved.values()), means, marker="o", ms=8, label="chosen by the search, mean of 3 seeds")
    line.set_color("#1f77b4")
    points = [each["accuracy"] for each in results["random"]]
    at = [saved[RANDOM_SKIPS]] * len(points)
    axes.scatter(at, points, marker="x", color="gray", alpha=0.5, label=f"random choices, seed {RANDOM_SEED}")
    axes.axhline(results["runs"][0]["zero_shot"], color="gray", ls="--", lw=1, label="zero-shot")
    for skipped, mean in zip(SKIPPED, means):
        axes.annotate(f"{skipped} skipped", (saved[skipped], mean), (6, 6), textcoords="offset points")
    axes.margins(x=0.22, y=0.15)
    axes.set_xlabel("operations of the vision tower saved, %")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure what is missing, then write the figures, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    work = parser.parse_args().work / "das"
    runs = [run(work, skipped, seed) for skipped in SKIPPED for seed in SEEDS]
    results = {
        "recipe": read_recipe(find_recipe(RECIPE)).model_dump(mode="json"),
        "runs": runs,
        "random": random_choices(work),
        "encoders": encoders(work),
        "threads": torch.get_num_threads(),
    }
    (TARGET / "das.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, TARGET / "das.png")
    cells, compared = as_markdown(table(results)), choices(results)
    for file, body in ((TARGET / "README.md", f"{cells}\n\n{compared}"), (TARGET.parents[1] / "README.md", cells)):
        file.write_text(card.filled(file.read_text(), "das", body))
    print(cells, compared, sep="\n\n")


if __name__ == "__main__":
    main()
