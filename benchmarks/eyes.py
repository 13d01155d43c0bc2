"""Native vision-language models as eyes: classifiers of the last state and of attention heads beside LoRA."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import adapt
from adapt.backbones.base import Backbone
from adapt.common.errors import AdaptError
from adapt.recipe import Recipe, read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import listed_data, plan_recipe, run_recipe
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
    """Yield accuracies for each method and backbone, and seconds of training; what is in WORK is not repeated."""
    os.environ["ADAPT_CACHE"] = str(WORK / "cache")
    for backbone, method in ((name, method) for name, methods in METHODS.items() for method in methods):
        cells, shown = dict[str, Any](), list[str]()
        for shots in SHOTS:
            progress(f"{method} on {backbone}, {shots} shots")
            found = [each for seed in SEEDS if (each := trained(method, backbone, shots, seed))]
            if found:
                cells[str(shots)] = [100 * each["adapted"]["accuracy"] for each in found]
                shown.append(f"{shots}: {mean(cells[str(shots)]):.1f} ± {stdev(cells[str(shots)]):.1f}")
        cells["seconds"] = seconds(method, backbone)
        text = f"{', '.join(shown)}; {cells['seconds']:.1f} s at {SHOTS[-1]}"
        yield {"case": f"{method} on {backbone}", **cells, "text": text}


def _recipe(method: str, backbone: str, shots: int, seed: int) -> Recipe:
    return read_recipe(method, [("data.shots", shots), ("seed", seed), ("backbone", backbone)], "emoji")


def _name(method: str, backbone: str, shots: int, seed: int) -> str:
    return f"{method}-{backbone}-{shots}-{seed}".replace("/", "_").replace(":", "_")


def trained(method: str, backbone: str, shots: int, seed: int) -> Any:
    """Return the metrics of a run of the method's recipe, or None if it needs more images of a class."""
    out = WORK / _name(method, backbone, shots, seed)
    if not (out / "metrics.json").exists():
        recipe = _recipe(method, backbone, shots, seed)
        try:
            run_recipe(recipe, out, resume=(out / "recipe.yaml").exists(), progress=False, backbone=loaded(backbone))
        except AdaptError:
            if shots > 1:
                raise
            return None
    return json.loads((out / "metrics.json").read_text())


def seconds(method: str, backbone: str) -> float:
    """Return the processor's seconds of one training with all images encoded anew, and nothing evaluated."""
    file = WORK / f"{_name(method, backbone, SHOTS[-1], SEEDS[0])}.seconds"
    if not file.exists():
        recipe = _recipe(method, backbone, SHOTS[-1], SEEDS[0])
        plan = plan_recipe(recipe, listed_data(recipe), loaded(backbone))
        before = os.environ["ADAPT_CACHE"]
        with TemporaryDirectory() as empty:
            os.environ["ADAPT_CACHE"] = empty
            start = time.process_time()
            fit_plan(replace(plan, test_set=(), calibrate=False), None, progress=False)
            file.write_text(f"{time.process_time() - start}")
        os.environ["ADAPT_CACHE"] = before
    return float(file.read_text())
