"""Trainings for one process and for two: `python divided_training.py MODEL DATA OUT RANK` makes all, as one of two."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_fusion
import tiny_llms
import tiny_natives
import torch
from native_chats import lora
from stopping import at_step, interrupt

import adapt
from adapt import methods
from adapt.chats import Chat
from adapt.data import Item, read_folder
from adapt.tasks.conversations import Conversation
from adapt.tasks.pairs import Pair
from adapt.tasks.preferences import Preference

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
STOPPED = ("edited towers", "conversations")
# divided by items, of which the last of thirteen is alone in its batch; without an image, nothing reaches the tower
_ANSWERS = ("a dog.", "it is a dog, I think.", "no.")
BY_ITEMS: dict[str, dict[str, Any]] = {
    "conversations": {"batch_size": 4, "accumulate": 2, "optimizer": "adamw"},
    "preferences": {"batch_size": 4, "epochs": 1},
    "a language model's answers": {"batch_size": 4, "accumulate": 2},
    "answers of a list": {"batch_size": 4, "accumulate": 3},
}


def by_items(case: str, data: Path) -> tuple[Any, list[Item]]:
    """A model, and the items that it learns."""
    paths = [item.path for item in read_folder(data).train[:13]]
    if case in ("conversations", "preferences"):
        towers = ("vision", "decoder") if case == "conversations" else ("decoder",)
        backbone: Any = tiny_natives.backbone("smolvlm")
        items = []
        for number, path in enumerate(paths):
            answer, other = _ANSWERS[number % 3], _ANSWERS[number % 2]
            if case == "preferences":
                label: Any = Preference(Chat.about("what is it?", answer), other + " so")
            else:
                label = Conversation(Chat.about("what is it?", answer, images=number % 4 > 0))
            items.append(Item((path,) * min(1, label.chat.images), label, text=str(number)))
        return wrapped(backbone, lora(*towers)), items
    if case == "answers of a list":
        backbone = tiny_fusion.vilt(None)
        method, answers, names = lora("fusion"), tiny_fusion.ANSWERS, tiny_fusion.ANSWERS
    else:
        backbone, method, names = tiny_llms.vision_llm("llama"), methods.find("projector")(), ()
        answers = ("a cat", "two", "the red dog .")
    items = [
        Item.of(path=path, question="what is it ?", label=answers[number % 3]) for number, path in enumerate(paths)
    ]
    return wrapped(backbone, method, names), items


def wrapped(backbone: Any, method: Any, names: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    return adapt.wrap(backbone, method, names)


def train(case: str, model: Path, data: Path, out: Path, resume: bool = False) -> adapt.training.result.Result:
    if case in BY_ITEMS:
        adapted, items = by_items(case, data)
        return adapt.fit(
            adapted, items, out=out / case, resume=resume, progress=False, workers=0, **SETTINGS | BY_ITEMS[case]
        )
    name, config, changes = CASES[case]
    split = read_folder(data)
    items, classes = split.train, split.class_names
    if case in ("pairs in contrast", "sums over a batch"):
        items = tuple(
            replace(each, label=Pair(), text=f"a big {each.answer} {number}") for number, each in enumerate(items)
        )
        classes = ()
    adapted = wrapped(adapt.load_backbone(str(model), "cpu"), methods.find(name)(**config), classes)
    test = items if classes else ()
    return adapt.fit(
        adapted, items, test, out=out / case, resume=resume, progress=False, workers=0, **SETTINGS | changes
    )


def main(model: Path, data: Path, out: Path) -> None:
    torch.set_num_threads(1)  # as in the tests
    for case in (*CASES, *BY_ITEMS):
        train(case, model, data, out)
    second = os.environ["RANK"] == "1"
    for case in STOPPED:
        try:
            with at_step(2, interrupt) if second else nullcontext():  # Ctrl-C reaches one process only
                train(case, model, data, out / "stopped")
        except KeyboardInterrupt:
            print("stopped")
        train(case, model, data, out / "stopped", resume=True)
    split = read_folder(data)
    solved = adapt.wrap(adapt.load_backbone(str(model), "cpu"), methods.find("gda")(), split.class_names)
    try:
        adapt.fit(solved, split.train)
    except adapt.AdaptError as error:
        print(error)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
