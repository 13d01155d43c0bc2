"""Native vision-language models as eyes: classifiers of the last state and of attention heads beside LoRA."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from tempfile import gettempdir
from typing import Any

import adapt
from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.models.features import item_features
from adapt.models.unadapted import unadapted
from adapt.recipe import read_recipe
from adapt.training.run_recipe import listed_data, run_recipe
from benchmarks.measure import Row

LAST, HEADS, TOWER, WORDS = "last:mini-vlm", "heads:mini-vlm", "vision:mini-clip", "mini-vlm"
METHODS = {
    LAST: ("gda", "lda", "linear_probe", "knn", "nearest_mean"),
    HEADS: ("savs", "hec", "gda"),
    TOWER: ("gda", "lda"),
    WORDS: ("lora/chats",),
}
SHOTS, SEEDS = (1, 4, 16), (1, 2, 3)
WORK = Path(os.environ.get("ADAPT_EYES") or Path(gettempdir()) / "adapt-eyes")


@cache
def loaded(name: str) -> Backbone:
    """Return the backbone of this name."""
    return adapt.load_backbone(name, "cpu")


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield accuracies and seconds of training for each method and backbone; finished runs in WORK are not repeated."""
    os.environ["ADAPT_CACHE"] = str(WORK / "cache")
    for backbone, method in ((name, method) for name, methods in METHODS.items() for method in methods):
        cells, shown = dict[str, Any](), []
        for shots in SHOTS:
            progress(f"{method} on {backbone}, {shots} shots")
            found = [each for seed in SEEDS if (each := trained(method, backbone, shots, seed))]
            if found:
                accuracies = [100 * each["adapted"]["accuracy"] for each in found]
                seconds = [each["seconds"] + encoding(backbone, shots, seed) for seed, each in zip(SEEDS, found)]
                cells[str(shots)] = {"accuracy": accuracies, "seconds": seconds}
                shown.append(f"{shots}: {mean(accuracies):.1f} ± {stdev(accuracies):.1f} in {mean(seconds):.1f} s")
        yield {"case": f"{method} on {backbone}", **cells, "text": ", ".join(shown)}


def trained(method: str, backbone: str, shots: int, seed: int) -> Any:
    """Return the metrics of a run of the method's recipe, or None if it needs more images of a class."""
    out = WORK / f"{method}-{backbone}-{shots}-{seed}".replace("/", "_").replace(":", "_")
    if not (out / "metrics.json").exists():
        recipe = read_recipe(method, [("data.shots", shots), ("seed", seed), ("backbone", backbone)], "emoji")
        try:
            run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False, backbone=loaded(backbone))
        except AdaptError:
            if shots > 1:
                raise
            return None
    return json.loads((out / "metrics.json").read_text())


def encoding(backbone: str, shots: int, seed: int) -> float:
    """Return the seconds that encoding the training and validation images once takes, or 0 for LoRA, which does it."""
    file = WORK / f"encoding-{backbone}-{shots}-{seed}.txt".replace(":", "_")
    if backbone == WORDS:
        return 0.0
    if not file.exists():
        split = listed_data(read_recipe("gda", [("data.shots", shots), ("seed", seed)], "emoji"))
        model: Any = unadapted(loaded(backbone), split.class_names).eval()
        start = time.perf_counter()
        item_features(model, [*split.train, *split.val], workers=0, cache=False)
        file.write_text(f"{time.perf_counter() - start}")
    return float(file.read_text())
