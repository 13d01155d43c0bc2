"""Base to new on the bundled set by the shipped recipes: `python base_to_new.py WORK` fills the card, draws the plot.

Runs that exist in the work folder are not repeated, so an interrupted measurement goes on.
"""

import argparse
import json
from pathlib import Path

import card
from matplotlib.figure import Figure

from adapt.evaluation.protocols import base_to_new
from adapt.evaluation.run_protocol import run_protocol
from adapt.recipe import find_recipe, read_recipe

TARGET = Path(__file__).resolve().parents[1]
RECIPES = {
    "CoOp": "coop/emoji_base_to_new",
    "CoCoOp": "cocoop/emoji",
    "IVLP": "ivlp/emoji",
    "MaPLe": "maple/emoji",
    "DPL": "dpl/emoji",
}
SEEDS = (1, 2, 3)
COLUMNS = ("base", "new", "harmonic")


def measure(work: Path) -> dict:
    """Mean and standard deviation over the seeds by method, and each seed's figures, in per cent."""
    protocols = {title: base_to_new(read_recipe(find_recipe(name)), SEEDS) for title, name in RECIPES.items()}
    results = {}
    for title, protocol in protocols.items():
        print(f"{title}: {RECIPES[title]}", flush=True)
        found = run_protocol(protocol, work / "base-to-new" / title, progress=print)
        (summary,) = found["summary"]
        results[title] = {"recipe": RECIPES[title]} | {
            kind: {key: round(100 * value, 2) for key, value in summary[kind].items()}
            for kind in ("mean", "std", "zero_shot")
        }
        results[title]["seeds"] = [{key: round(100 * row[key], 2) for key in ("base", "new")} for row in found["runs"]]
    return results


def zero_shot(results: dict) -> list[float]:
    """Base, new and harmonic mean without training: the same in every run."""
    (figures,) = {tuple(result["zero_shot"][key] for key in COLUMNS) for result in results.values()}
    return list(figures)


def table(results: dict) -> str:
    """Mean ± standard deviation as a Markdown table."""
    lines = ["| method | base | new | harmonic mean |", "| --- | --- | --- | --- |"]
    lines.append(f"| zero-shot | {' | '.join(f'{value:.1f}' for value in zero_shot(results))} |")
    for title, result in results.items():
        cells = [f"{result['mean'][key]:.1f} ± {result['std'][key]:.1f}" for key in COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(results: dict, file: Path) -> None:
    """New against base accuracy: a small dot a seed, a large one for the mean."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    base, new, _ = zero_shot(results)
    axes.axvline(base, color="gray", ls="--", lw=1)
    axes.axhline(new, color="gray", ls="--", lw=1, label="zero-shot")
    for title, result in results.items():
        mean = axes.scatter(result["mean"]["base"], result["mean"]["new"], s=90, label=title, zorder=3)
        points = [(row["base"], row["new"]) for row in result["seeds"]]
        axes.scatter(*zip(*points, strict=True), s=14, color=mean.get_facecolor(), zorder=2)
    axes.set_xlabel("accuracy on base classes, %")
    axes.set_ylabel("accuracy on new classes, %")
    axes.set_title("mini-clip on emoji: each seed and the mean of 3")
    axes.legend()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure what is missing, then write the figures, the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    results = measure(parser.parse_args().work)
    (TARGET / "base_to_new.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, TARGET / "base_to_new.png")
    for file in (TARGET / "README.md", TARGET.parents[1] / "README.md"):
        file.write_text(card.filled(file.read_text(), "base-to-new", table(results)))
    print(table(results))


if __name__ == "__main__":
    main()
