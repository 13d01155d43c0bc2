"""Base to new: trained on the first half of the classes, measured on both halves, each among its own names.

Source: CoOp `ff61507`, `datasets/oxford_pets.py`; CoCoOp, section 4.1. The harmonic mean is that of the two accuracies
averaged over seeds, as in the papers' tables.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapt import adapter, methods
from adapt.data.readers import load
from adapt.errors import AdaptError
from adapt.evaluation.evaluate import evaluate
from adapt.files import write_text
from adapt.methods.zero_shot import ZeroShot
from adapt.model import wrap
from adapt.recipe import Recipe
from adapt.training.run_recipe import run_recipe

Row = dict[str, Any]  # seed, base, new, zero_shot_base, zero_shot_new, in [0, 1]
FIGURES = ("base", "new", "zero_shot_base", "zero_shot_new")


def base_to_new(
    recipe: Recipe, seeds: Sequence[int], out: Path, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Runs `recipe` on the base classes for every seed and measures each adapter on the new ones.

    `out` gets a run directory a seed and `base_to_new.json` and `.csv`. A run that is there is not repeated, an
    interrupted one goes on. Raises AdaptError for a method that cannot serve new classes, before anything is trained.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise AdaptError(f"seeds are {list(seeds)}; expected different numbers, such as 1,2,3")
    if methods.find(recipe.method["name"])(**recipe.method_config).per_class:
        raise AdaptError(f"{recipe.method['name']} learns tensors for each of its classes and cannot serve new ones")
    on_base = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": "base"})})
    rows = []
    for seed in seeds:
        rows.append(_one_seed(on_base.model_copy(update={"seed": seed}), out / f"seed-{seed}"))
        if progress is not None:
            progress(f"seed {seed}: base {100 * rows[-1]['base']:.1f} %, new {100 * rows[-1]['new']:.1f} %")
    results = {"recipe": recipe.model_dump(mode="json"), "seeds": rows, **summary(rows)}
    write_text(out / "base_to_new.json", json.dumps(results, indent=2) + "\n")
    write_text(out / "base_to_new.csv", _csv(rows))
    return results


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of each figure, and the harmonic means."""
    mean = {key: statistics.mean(row[key] for row in rows) for key in FIGURES}
    spread = {key: statistics.stdev(row[key] for row in rows) if len(rows) > 1 else 0.0 for key in FIGURES}
    mean["harmonic"] = harmonic(mean["base"], mean["new"])
    mean["zero_shot_harmonic"] = harmonic(mean["zero_shot_base"], mean["zero_shot_new"])
    each = [harmonic(row["base"], row["new"]) for row in rows]
    spread["harmonic"] = statistics.stdev(each) if len(each) > 1 else 0.0
    return {"mean": mean, "std": spread}


def harmonic(base: float, new: float) -> float:
    """Of two accuracies; 0 where either is."""
    return 2 * base * new / (base + new) if base and new else 0.0


def _one_seed(recipe: Recipe, out: Path) -> Row:
    if not (out / "base_to_new.json").exists():
        if not (out / "metrics.json").exists():
            run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False)
        write_text(out / "base_to_new.json", json.dumps(_measured(recipe, out), indent=2) + "\n")
    if (out / "recipe.yaml").read_text() != recipe.to_yaml():
        raise AdaptError(f"{out} holds a run of another recipe: choose another --out")
    row: Row = json.loads((out / "base_to_new.json").read_text())
    return row


def _measured(recipe: Recipe, out: Path) -> Row:
    metrics = json.loads((out / "metrics.json").read_text())
    new = load(recipe.data.source, recipe.data.root).only("new")
    model = adapter.load(out / "adapter.safetensors", device=recipe.device).with_classes(new.class_names)
    baseline = wrap(model.backbone, ZeroShot(recipe.data.template), new.class_names)
    return {
        "seed": recipe.seed,
        "base": metrics["adapted"]["accuracy"],
        "new": evaluate(model, new.test, cache=recipe.cache).accuracy,
        "zero_shot_base": metrics["zero_shot"]["accuracy"],
        "zero_shot_new": evaluate(baseline, new.test, cache=recipe.cache).accuracy,
    }


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["seed", *FIGURES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
