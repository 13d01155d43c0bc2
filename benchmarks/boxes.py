"""Where things are in scenes of emoji: mean IoU of a native model's boxes, without LoRA and with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

from adapt.common.plain import JsonObject
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
FIGURES = ("mean_iou", "f1", "readable")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the figures of each seed of the recipe `lora/boxes` on the bundled scenes, and their means."""
    trained: list[JsonObject] = []
    with TemporaryDirectory() as folder:
        for seed in SEEDS:
            progress(f"seed {seed}")
            metrics = run_recipe(read_recipe("lora/boxes", [f"seed={seed}"]), Path(folder) / str(seed)).metrics
            if not trained:
                yield _row("without the adapter", [metrics["zero_shot"]])
            trained.append(metrics["adapted"])
            yield _row(f"seed {seed}", trained[-1:])
    yield _row("with the adapter", trained)


def _row(case: str, figures: list[JsonObject]) -> Row:
    each = {name: [own[name] for own in figures] for name in FIGURES}
    spread = {name: f" ± {stdev(values):.3f}" if len(values) > 1 else "" for name, values in each.items()}
    return {"case": case, **each, "text": ", ".join(f"{name} {mean(each[name]):.3f}{spread[name]}" for name in FIGURES)}
