"""Train the recipe `lora/chats` with seeds 1, 2, 3: `python compare.py WORK`. Writes `compare.json`."""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

TARGET = Path(__file__).resolve().parents[1]
SEEDS = (1, 2, 3)


def figures(work: Path, seed: int) -> dict[str, float]:
    """The figures of one run, trained or read."""
    out = work / f"seed-{seed}"
    if not (out / "metrics.json").exists():
        run_recipe(read_recipe("lora/chats", [f"seed={seed}"]), out, resume=out.exists(), progress=False)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {
        "before": metrics["zero_shot"]["accuracy"],
        "after": metrics["adapted"]["accuracy"],
        "seconds": metrics["seconds"],
        "parameters": metrics["trainable_parameters"],
    }


def main() -> None:
    """Train, and write the figures."""
    runs = [figures(Path(sys.argv[1]), seed) for seed in SEEDS]
    after = [100 * run["after"] for run in runs]
    print(f"before {100 * runs[0]['before']:.1f} %, after {mean(after):.1f} ± {stdev(after):.1f} %")
    (TARGET / "compare.json").write_text(json.dumps(dict(zip(map(str, SEEDS), runs, strict=True)), indent=1) + "\n")


if __name__ == "__main__":
    main()
