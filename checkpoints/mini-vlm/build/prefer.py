"""Learn conversations, then preferences, with seeds 1, 2, 3: `python prefer.py WORK`. Writes `prefer.json`.

The runs of `compare.py` in the same folder are the starts.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

import compare

import adapt
from adapt.evaluation.evaluate import evaluate
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

STYLE = "fluent-3d"


def figures(work: Path, seed: int) -> dict[str, dict[str, float]]:
    """The figures of both adapters: pairs in order, their margin, and right answers in words."""
    compare.figures(work, seed)
    start, out = work / f"seed-{seed}", work / f"preferences-{seed}"
    if not (out / "metrics.json").exists():
        recipe = read_recipe("lora/preferences", [f"seed={seed}", f"start={start}"])
        run_recipe(recipe, out, resume=out.exists(), progress=False)
    return {name: measured(run) for name, run in (("before", start), ("after", out))}


def measured(run: Path) -> dict[str, float]:
    """The figures of the adapter of a run on the test pairs and the test conversations."""
    model = adapt.load(run)
    pairs, chats = (adapt.data.load(f"emoji-{kind}@{STYLE}").test for kind in ("preferences", "chats"))
    order, words = (evaluate(model, items, workers=0).figures() for items in (pairs, chats))
    return {"in_order": order["accuracy"], "margin": order["margin"], "right": words["accuracy"]}


def main() -> None:
    """Train, measure, and write the figures."""
    runs = {seed: figures(Path(sys.argv[1]), seed) for seed in compare.SEEDS}
    for key in ("in_order", "margin", "right"):
        for name in ("before", "after"):
            values = [run[name][key] for run in runs.values()]
            print(f"{key} {name}: {mean(values):.3f} ± {stdev(values):.3f}")
    (compare.TARGET / "prefer.json").write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
