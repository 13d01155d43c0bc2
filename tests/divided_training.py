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
from stopping import at_step, interrupt

import adapt
from adapt import methods
from adapt.chats import Chat
from adapt.data import Item, read_folder
from adapt.tasks.contrasts import Contrast
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
    "the best epoch": ("maple", {"depth": 2}, {"epochs": 6, "holdout": 0.25, "keep": "best", "patience": 1}),
}
STOPPED = ("edited towers", "conversations")
# divided by items, of which the last of thirteen is alone in its batch; without an image, nothing reaches the tower
_LORA = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "projections": "all", "input_gradient": True}
_ANSWERS = ("a dog.", "it is a dog, I think.", "no.")
BY_ITEMS: dict[str, dict[str, Any]] = {
    "conversations": {"batch_size": 4, "accumulate": 2, "optimizer": "adamw"},
    "preferences": {"batch_size": 4, "epochs": 1},
    "minimal pairs": {"batch_size": 4, "epochs": 1},
    "a language model's answers": {"batch_size": 4, "accumulate": 2},
    "drawn numbers of tokens": {"batch_size": 4, "accumulate": 2, "average": {"ema": {"decay": 0.5}}},
    "a search": {"batch_size": 4, "epochs": 1},
    "answers of a list": {"batch_size": 4, "accumulate": 3},
}


def by_items(case: str, data: Path) -> tuple[Any, list[Item]]:
    """A model, and the items that it learns."""
    paths = [item.path for item in read_folder(data).train[:13]]
    make, method, names = {
        "a language model's answers": (_llama, ("projector", {}), ()),
        "drawn numbers of tokens": (_llama, ("mqt", {"tokens": 4}), ()),
        "answers of a list": (_vilt, ("lora", _LORA | {"towers": ("fusion",)}), tiny_fusion.ANSWERS),
        "a search": (_llama, ("das", {"skip": 1, "towers": ("decoder",), "search_epochs": 2}), ()),
        "conversations": (_native, ("lora", _LORA | {"towers": ("vision", "decoder")}), ()),
    }.get(case, (_native, ("lora", _LORA | {"towers": ("decoder",)}), ()))  # fmt: skip
    model = wrapped(make(), methods.find(method[0])(**method[1]), names)
    if make is _native:
        return model, [chat_of(case, path, number) for number, path in enumerate(paths)]
    answers = names or ("a cat", "two", "the red dog .")
    return model, [
        Item.of(path=path, question="what is it ?", label=answers[number % 3]) for number, path in enumerate(paths)
    ]


def _llama() -> Any:
    return tiny_llms.vision_llm("llama")


def _vilt() -> Any:
    return tiny_fusion.vilt(None)


def _native() -> Any:
    return tiny_natives.backbone("smolvlm")


def chat_of(case: str, path: str, number: int) -> Item:
    answer, rejected = _ANSWERS[number % 3], _ANSWERS[number % 2] + " so"
    chat = Chat.about("what is it?", answer)
    if case == "preferences":
        return Item((path,), Preference(chat, rejected), text=str(number))
    if case == "minimal pairs":
        return Item((path, path), Contrast(chat, rejected), text=str(number))
    images = min(1, number % 4)
    return Item((path,) * images, Conversation(Chat.about("what is it?", answer, images=images)), text=str(number))


def wrapped(backbone: Any, method: Any, names: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(0)
    return adapt.wrap(backbone, method, names)


def train(case: str, model: Path, data: Path, out: Path, resume: bool = False) -> adapt.training.result.Result:
    if case in BY_ITEMS:
        adapted, items = by_items(case, data)
        held_out = {"val_set": items[9:]} if case == "a search" else {}
        settings = SETTINGS | BY_ITEMS[case] | held_out
        return adapt.fit(adapted, items, out=out / case, resume=resume, progress=False, workers=0, **settings)
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
