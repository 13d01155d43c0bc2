"""Few-shot curves on the bundled set by the shipped recipes: `python curves.py WORK` fills the card and draws the plot.

Runs that exist in the work folder are not repeated, so an interrupted measurement goes on.
"""

import argparse
import json
import statistics
from collections.abc import Collection
from itertools import product
from pathlib import Path

import card
from card import TARGET
from matplotlib.figure import Figure

from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

METHODS = {"linear_probe": "linear probe", "coop": "CoOp", "lora": "LoRA"}
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)


def measure(work: Path, method: str, shots: int, seed: int) -> dict:
    """The metrics of one run; `method` is a recipe's name, perhaps with changes behind it, as words of a command."""
    out = work / "curves" / f"{method.replace('/', '_').replace(' ', '_')}-{shots}-{seed}"
    if not (out / "metrics.json").exists():
        name, *changes = method.split()
        recipe = read_recipe(name, [f"data.shots={shots}", f"seed={seed}", *changes], data="emoji")
        run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False)
        print(f"measured {out.name}", flush=True)
    return json.loads((out / "metrics.json").read_text())


def curves(work: Path, methods: dict[str, str] = METHODS, refused: Collection[tuple[str, int]] = ()) -> dict:
    """Accuracies in per cent: a list over seeds for every method and number of shots that it does not refuse."""
    cases = [case for case in product(methods, SHOTS, SEEDS) if case[:2] not in refused]
    runs = {case: measure(work, *case) for case in cases}
    accuracies: dict = {method: {} for method in methods}
    for (method, shots, _), metrics in runs.items():
        accuracies[method].setdefault(str(shots), []).append(round(100 * metrics["adapted"]["accuracy"], 2))
    zero_shot = {round(100 * metrics["zero_shot"]["accuracy"], 2) for metrics in runs.values()}
    (baseline,) = zero_shot  # one backbone, one test set
    return {"zero-shot": baseline, "seeds": list(SEEDS), "accuracy": accuracies}


def table(results: dict, methods: dict[str, str] = METHODS) -> str:
    """Mean and standard deviation over the seeds as a Markdown table."""
    lines = ["| shots | " + " | ".join(map(str, SHOTS)) + " |", "| --- " * (len(SHOTS) + 1) + "|"]
    lines.append(f"| zero-shot | {' | '.join([format(results['zero-shot'], '.1f')] * len(SHOTS))} |")
    for method, title in methods.items():
        runs = [results["accuracy"][method].get(str(shots)) for shots in SHOTS]
        cells = [f"{statistics.mean(each):.1f} ± {statistics.stdev(each):.1f}" if each else "" for each in runs]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict, file: Path) -> None:
    """Curves with bands of one standard deviation."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for method, title in METHODS.items():
        runs = [results["accuracy"][method][str(shots)] for shots in SHOTS]
        mean = [statistics.mean(values) for values in runs]
        spread = [statistics.stdev(values) for values in runs]
        (line,) = axes.plot(SHOTS, mean, marker="o", label=title)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(SHOTS, low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(results["zero-shot"], color="gray", ls="--", label="zero-shot")
    axes.set_xscale("log", base=2)
    axes.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
    axes.set_xlabel("training images a class")
    axes.set_ylabel("test accuracy, %")
    axes.set_title("mini-clip on emoji: mean of 3 seeds, one standard deviation")
    axes.legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure what is missing, then write the figures, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    results = curves(parser.parse_args().work)
    (TARGET / "curves.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, TARGET / "curves.png")
    file = TARGET / "README.md"
    file.write_text(card.filled(file.read_text(), "few-shot", table(results)))
    print(table(results))


if __name__ == "__main__":
    main()
