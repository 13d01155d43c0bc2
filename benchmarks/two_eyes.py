"""Two vision towers for one language model (mixtures of features): answers to questions about place, and to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from torch import Tensor

import adapt
from adapt.models.vision_llm import SpeakingModel
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import drawings, paired, per_cent, right, row_of
from benchmarks.measure import Row

DATA, SEEDS, EPOCHS = "emoji-questions", (1, 2, 3), 2
ONE, TWO, TWICE = (f"{eyes}+mini-lm" for eyes in ("mini-clip", "mini-clip&mini-clip-half", "mini-clip&mini-clip"))
EYES: dict[str, tuple[str, dict[str, Any]]] = {  # a backbone, and settings of the projector
    "one tower": (ONE, {}),
    "two, side by side": (TWO, {}),
    "two, in turns": (TWO, {"mix": "interleave"}),
    "two, added": (TWO, {"mix": "add"}),
    "the first one twice, in turns": (TWICE, {"mix": "interleave"}),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the shares of right answers about place and about all, by how patches become tokens.

    Beside them is the paired difference to one tower.
    """
    split = drawings(DATA)
    place = [number for number, item in enumerate(split.test) if "on the" in cast("Any", item.label).question]
    parts = {"place": place, "all": range(len(split.test))}
    alone = list[Tensor]()
    for case, (backbone, settings) in EYES.items():
        rights = list[Tensor]()
        for seed in SEEDS:
            progress(f"{case}, seed {seed}")
            changes = [
                ("seed", seed),
                ("train.epochs", EPOCHS),
                *((f"method.{name}", value) for name, value in settings.items()),
            ]
            recipe = read_recipe("projector", changes, DATA)
            model = cast("SpeakingModel", build(recipe, split.class_names, adapt.load_backbone(backbone, "cpu")))
            fit_plan(plan_of(recipe, model, split), None)
            rights.append(right(model.eval(), split.test))
        alone, cells = alone or rights, dict[str, str]()
        for name, chosen in parts.items():
            ours, others = ([each[[*chosen]] for each in arm] for arm in (rights, alone))
            apart = "" if rights is alone else f" ({paired(ours, others, [split.test[number] for number in chosen])})"
            cells[name] = f"{name} {per_cent(ours)}{apart}"
        yield row_of(case, cells)
