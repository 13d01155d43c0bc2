"""Trainings for one process and for two: `python divided_training.py MODEL DATA OUT RANK` makes all, as one of two."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stopping import at_step, interrupt

import adapt
from adapt import methods
from adapt.data import read_folder
from adapt.tasks.pairs import Pair

# a method, its settings, those of the training; of batches of 7, 7 and 6 images the second share of 7 has an image of
# the first again
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 7, "drop_last": False, "warmup_epochs": 0, "lr": 0.01}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "edited towers": ("maple", {"depth": 2}, {}),
    "classes by the image": ("cocoop", {"n_ctx": 2, "ctx_init": ""}, {"augment": "published"}),
    "block inputs": ("mma", {"blocks": (2, 2), "scale": 0.5}, {"augment": "none"}),
    "several terms": ("prompt_src", {"depth_text": 1, "depth_vision": 2}, {"class_weights": "balanced", "epochs": 1}),
    "imitated blocks": ("das", {"skipped": ["vision.1"], "imitate": 1}, {"accumulate": 2, "optimizer": "adamw"}),
    "pairs in contrast": ("lora", {"dropout": 0.0}, {"epochs": 1}),
    "sums over a batch": ("modx", {}, {"epochs": 1}),
}


def train(case: str, model: Path, data: Path, out: Path, resume: bool = False) -> adapt.training.result.Result:
    name, config, changes = CASES[case]
    split = read_folder(data)
    items, classes = split.train, split.class_names
    if case in ("pairs in contrast", "sums over a batch"):
        items = tuple(
            replace(each, label=Pair(), text=f"a big {each.answer} {number}") for number, each in enumerate(items)
        )
        classes = ()
    torch.manual_seed(0)
    adapted = adapt.wrap(adapt.load_backbone(str(model), "cpu"), methods.find(name)(**config), classes)
    test = items if classes else ()
    return adapt.fit(
        adapted, items, test, out=out / case, resume=resume, progress=False, workers=0, **SETTINGS | changes
    )


def main(model: Path, data: Path, out: Path) -> None:
    torch.set_num_threads(1)  # as in the tests
    for case in CASES:
        train(case, model, data, out)
    second = os.environ["RANK"] == "1"
    try:
        with at_step(2, interrupt) if second else nullcontext():  # Ctrl-C reaches one process only
            train("edited towers", model, data, out / "stopped")
    except KeyboardInterrupt:
        print("stopped")
    train("edited towers", model, data, out / "stopped", resume=True)
    split = read_folder(data)
    solved = adapt.wrap(adapt.load_backbone(str(model), "cpu"), methods.find("gda")(), split.class_names)
    try:
        adapt.fit(solved, split.train)
    except adapt.AdaptError as error:
        print(error)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
