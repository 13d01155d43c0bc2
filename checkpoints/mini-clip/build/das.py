"""Skipped blocks on the bundled set by the shipped recipe: `python das.py WORK`.

It fills the card and docs/fewer_operations.md, and draws the plot. Runs that exist in the work folder are not
repeated, so an interrupted measurement goes on.
"""

import argparse
import json
import random
import statistics
import sys
from functools import partial
from itertools import combinations
from pathlib import Path

import card
import torch
from matplotlib.figure import Figure

import adapt
from adapt.data.readers.lines import csv_rows
from adapt.evaluation.flops import image_flops
from adapt.evaluation.intervals import standard_error
from adapt.protocols.tables import as_markdown
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

sys.path.append(str(Path(__file__).resolve().parents[3]))  # benchmarks are in no package

from benchmarks.das import BATCH
from benchmarks.measure import by_turns

TARGET = Path(__file__).resolve().parents[1]
RECIPE = "das"
SEEDS = (1, 2, 3)
SKIPPED = (0, 1, 2, 3)
BLOCKS = 6
RANDOM, PAIR_SEED = 10, 1  # pairs of blocks drawn at random; all pairs are trained on the images of one seed
ROUNDS = 60


def measure(out: Path, *changes: str) -> dict:
    """The metrics of the recipe with `changes`, trained in `out`."""
    if not (out / "metrics.json").exists():
        recipe = read_recipe(RECIPE, changes)
        run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False)
        print(f"measured {out.name}", flush=True)
    return json.loads((out / "metrics.json").read_text())


def run(work: Path, skipped: int, seed: int, *changes: str) -> dict:
    """What one search and one training gave; without skipped blocks there is no search."""
    out = folder(work, skipped, seed, *changes)
    metrics = measure(out, f"method.skip={skipped}", f"seed={seed}", *changes)
    found = {"skipped": skipped, "seed": seed, "accuracy": percent(metrics), "zero_shot": percent(metrics, "zero_shot")}
    if skipped:
        search = metrics["search"]
        found |= {"chosen": search["chosen"], "updates": search["updates"]}
        found |= {"search_share": search["share_of_training"], "search_seconds": search["seconds"]}
    return found | {"training_seconds": metrics["seconds"], "train_set": metrics["train_set"]}


def folder(work: Path, skipped: int, seed: int, *changes: str) -> Path:
    """Where that run is kept."""
    return work / "-".join(map(str, ("skip", skipped, seed, *changes)))


def percent(metrics: dict, model: str = "adapted") -> float:
    """Accuracy on the test images."""
    return round(100 * metrics[model]["accuracy"], 2)


def pairs(work: Path) -> list[dict]:
    """Every pair of blocks trained without a search, by the same settings; some are also those of a random draw."""
    every = list(combinations(range(BLOCKS), 2))
    drawn = random.Random(0).sample(every, RANDOM)
    found = []
    for pair in every:
        names = [f"vision.{index}" for index in pair]
        out = work / f"pair-{'-'.join(map(str, pair))}"
        metrics = measure(out, "method.skip=2", f"method.skipped=[{', '.join(names)}]", f"seed={PAIR_SEED}")
        found.append({"skipped": names, "accuracy": percent(metrics), "drawn": pair in drawn})
    return found


def against_random(work: Path) -> dict:
    """How many per cent more the searched pair answers right than a pair drawn at random, with a 95 % interval.

    A random pair is the mean of all pairs; the interval is over test images, of which a drawing's versions are one.
    """
    every = [right(work / f"pair-{one}-{other}") for one, other in combinations(range(BLOCKS), 2)]
    searched, groups = right(folder(work, 2, PAIR_SEED))
    gain = searched - torch.stack([answers for answers, _ in every]).mean(0)
    mean, error = 100 * float(gain.mean()), 100 * standard_error(gain, groups)
    return {"difference": round(mean, 2), "interval": [round(mean - 1.96 * error, 2), round(mean + 1.96 * error, 2)]}


def right(run: Path) -> tuple[torch.Tensor, list[str]]:
    """Which test images a run answered right, and their groups."""
    _, rows = csv_rows(run / "predictions.csv")
    answers = torch.tensor([float(row["class"] == row["predicted"]) for row in rows])
    return answers, [str(row["group"]) for row in rows]


def encoders(work: Path) -> list[dict]:
    """Operations and seconds of vision towers: the backbone's alone, then those trained on the first seed."""
    file = work / "encoders.json"
    if not file.exists():
        backbone = adapt.load_backbone("mini-clip")
        alone = adapt.wrap(backbone, adapt.methods.ZeroShot(), ["cat", "dog"], fast=False)
        models = [alone.eval()]
        files = [folder(work, skipped, SEEDS[0]) / "adapter.safetensors" for skipped in SKIPPED]
        models += [adapt.load(file, fast=False) for file in files]
        operations = [image_flops(model) for model in models]
        images = torch.randn(BATCH, 3, *[backbone.preprocess.size] * 2)
        with torch.inference_mode():
            taken = by_turns([partial(each.image_features, images) for each in models], ROUNDS)
        rows = [dict(zip(("skipped", "flops", "seconds"), row)) for row in zip((None, *SKIPPED), operations, taken)]
        file.write_text(json.dumps(rows, indent=2) + "\n")
    return json.loads(file.read_text())


def table(results: dict) -> list[list[str]]:
    """A row for the backbone alone, and one for each number of skipped blocks with what it saves against none."""
    rows = [
        ["blocks skipped", "accuracy", "chosen, by seed", "gate updates", "search's share of training time"]
        + ["FLOPs an image", "saved", f"seconds, batch of {BATCH}", "saved"]
    ]
    alone, *encoders = results["encoders"]
    zero_shot = results["runs"][0]["zero_shot"]
    rows.append(["backbone alone", f"{zero_shot:.1f}", "", "", "", _operations(alone), "", _seconds(alone), ""])
    for encoder in encoders:
        runs = [each for each in results["runs"] if each["skipped"] == encoder["skipped"]]
        row = [f"{encoder['skipped']} of {BLOCKS}", spread([each["accuracy"] for each in runs])]
        if encoder["skipped"]:
            row += [chosen(runs), span([each["updates"] for each in runs], "d")]
            row.append(f"{span([100 * each['search_share'] for each in runs], '.0f')} %")
        else:
            row += ["", "", ""]
        for key, shown in (("flops", _operations(encoder)), ("seconds", _seconds(encoder))):
            saved = 1 - encoder[key] / encoders[0][key]
            row += [shown, f"{100 * saved:.1f} %" if encoder["skipped"] else ""]
        rows.append(row)
    return rows


def _operations(encoder: dict) -> str:
    return f"{encoder['flops'] / 1e6:.0f} M"


def _seconds(encoder: dict) -> str:
    return f"{encoder['seconds']:.4f}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def chosen(runs: list[dict]) -> str:
    """The blocks that each seed's search chose."""
    return ", ".join(blocks(each["chosen"]) for each in runs)


def blocks(names: list[str]) -> str:
    """Their numbers."""
    return "+".join(name.removeprefix("vision.") for name in names)


def span(values: list, form: str) -> str:
    """One figure, or the least and the largest."""
    ends = dict.fromkeys((format(min(values), form), format(max(values), form)))
    return "–".join(ends)


def choices(results: dict) -> str:
    """The search's choice of two blocks against all others, as a sentence and a table."""
    (own,) = (each for each in results["runs"] if (each["skipped"], each["seed"]) == (2, PAIR_SEED))
    every = sorted(results["pairs"], key=lambda each: -each["accuracy"])
    mean = statistics.mean(each["accuracy"] for each in every)
    drawn = statistics.mean(each["accuracy"] for each in every if each["drawn"])
    gain = results["against_random"]
    low, high = gain["interval"]
    cells = [[blocks(each["skipped"]) + ("" if each["drawn"] else "*") for each in every]]
    cells.append([f"{each['accuracy']:.1f}" for each in every])
    return (
        f"Two blocks on seed {PAIR_SEED}: the search took {blocks(own['chosen'])}, {own['accuracy']:.1f} %. All "
        f"{len(every)} pairs by the same settings give {mean:.1f} % on average, {RANDOM} that were drawn at random "
        f"(without *) {drawn:.1f} %. The searched pair is better than a random one by {gain['difference']:.1f} points "
        f"(95 % interval over test images {low:.1f} to {high:.1f}):\n\n{as_markdown(cells)}"
    )


def plot(results: dict, file: Path) -> None:
    """Accuracy against the share of operations that is saved: means, the seeds as dots, random choices faint."""
    _, *encoders = results["encoders"]
    saved = {each["skipped"]: 100 * (1 - each["flops"] / encoders[0]["flops"]) for each in encoders}
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    means = []
    for skipped in SKIPPED:
        accuracies = [each["accuracy"] for each in results["runs"] if each["skipped"] == skipped]
        means.append(statistics.mean(accuracies))
        axes.scatter([saved[skipped]] * len(accuracies), accuracies, s=16, color="#1f77b4", zorder=3)
    (line,) = axes.plot(list(saved.values()), means, marker="o", ms=8, label="chosen by the search, mean of 3 seeds")
    line.set_color("#1f77b4")
    points = [each["accuracy"] for each in results["pairs"]]
    label = f"every pair, seed {PAIR_SEED}"
    axes.scatter([saved[2]] * len(points), points, marker="x", color="gray", alpha=0.5, label=label)
    axes.axhline(results["runs"][0]["zero_shot"], color="gray", ls="--", lw=1, label="zero-shot")
    for skipped, mean in zip(SKIPPED, means):
        axes.annotate(f"{skipped} skipped", (saved[skipped], mean), (6, 6), textcoords="offset points")
    axes.margins(x=0.22, y=0.15)
    axes.set_xlabel("operations saved, % of the vision tower's with all blocks and their adapters")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure what is missing, then write the figures, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    work = parser.parse_args().work / "das"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # runs in other processes may go on beside this one
    runs = [run(work, skipped, seed) for skipped in SKIPPED for seed in SEEDS]
    results = {
        "recipe": read_recipe(RECIPE).model_dump(mode="json"),
        "runs": runs,
        "pairs": pairs(work),
        "against_random": against_random(work),
    }
    torch.set_num_threads(threads)
    results |= {"encoders": encoders(work), "threads": threads}
    (TARGET / "das.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, TARGET / "das.png")
    cells, compared = as_markdown(table(results)), choices(results)
    page = TARGET.parents[1] / "docs" / "fewer_operations.md"
    for file, body in ((TARGET / "README.md", f"{cells}\n\n{compared}"), (page, cells)):
        file.write_text(card.filled(file.read_text(), "das", body))
    print(cells, compared, sep="\n\n")


if __name__ == "__main__":
    main()
