"""Where things are in scenes of emoji: mean IoU of a native model's boxes, without LoRA and with it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
FIGURES = ("mean_iou", "f1", "readable")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the figures of each seed of `lora/boxes` on the bundled scenes, their means, and IoU by scene."""
    trained, of_scene = list[JsonObject](), dict[str, list[float]]()
    with TemporaryDirectory() as folder:
        for seed in SEEDS:
            progress(f"seed {seed}")
            run = Path(folder) / str(seed)
            metrics = run_recipe(read_recipe("lora/boxes", [f"seed={seed}"]), run).metrics
            if not trained:
                yield _row("without the adapter", [metrics["zero_shot"]])
            trained.append(metrics["adapted"])
            yield _row(f"seed {seed}", trained[-1:])
            for scene, each in grouped(_by_scene(run / "predictions.csv")).items():
                of_scene.setdefault(scene, []).append(mean(each))
    yield _row("with the adapter", trained)
    for scene, each in sorted(of_scene.items()):
        yield {"case": scene, "mean_iou": each, "text": f"mean_iou {mean(each):.3f} ± {stdev(each):.3f}"}


def _by_scene(path: Path) -> Iterator[tuple[str, float]]:
    """Yield what is in the scene of each question, and the IoU of its answer."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    asked = Counter(row["path"] for row in rows)
    for row in rows:
        copies = len(json.loads(row["class"]))
        scene = "one thing" if copies == 1 else "copies of a thing"
        yield "one of two things" if asked[row["path"]] > 1 else scene, float(row["iou"])


def _row(case: str, figures: list[JsonObject]) -> Row:
    each = {name: [own[name] for own in figures] for name in FIGURES}
    spread = {name: f" ± {stdev(values):.3f}" if len(values) > 1 else "" for name, values in each.items()}
    return {"case": case, **each, "text": ", ".join(f"{name} {mean(each[name]):.3f}{spread[name]}" for name in FIGURES)}
