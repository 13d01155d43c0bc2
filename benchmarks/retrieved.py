"""Invented facts about drawings, read from passages: trained with and without wrong ones beside the right one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

import adapt
from adapt.chats import Chat
from adapt.common.plain import dump
from adapt.data import Item, Split, load, open_image
from adapt.data.emoji.bundled import concept_names
from adapt.methods import ZeroShot
from adapt.models.base import Adapted
from adapt.recipe import read_recipe
from adapt.retrieval.index import index_texts
from adapt.retrieval.passages import Retriever
from adapt.tasks.conversations import Conversation
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import backbone, drawings, per_cent, right
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
TRAINED, TESTED, WRONG = 120, 60, 2  # concepts, and the most wrong passages
TRAININGS = {  # numbers of passages with the epochs on them; ten epochs on 60 concepts taught nothing of three passages
    "untrained": {},
    "right passage alone": {1: 30},
    f"beside {WRONG} wrong ones": {WRONG + 1: 30},
    f"alone, then beside {WRONG} wrong ones": {1: 20, WRONG + 1: 10},
}
QUESTION, FACT = "how is it?", "the {} is {}."
FACTS = (  # words of mini-vlm that name no drawing
    "aerial anxious astonished bald birthday bullet classical confused construction convenience curly deaf deciduous "
    "delivery derelict diagonal diving double empty evergreen fast fearful feeding flushed gibbous grimacing grinning "
    "hushed incoming japanese kissing leafy loudly manual military milky motorized musical neutral oncoming "
    "persevering pleading polar pregnant quarter reverse roasted shallow shinto slightly smiling squinting "
    "steaming stuffed tired triangular tropical waning weary yawning"
)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report right answers about concepts of which no training question asked, by the number of wrong passages."""
    rights = defaultdict[str, defaultdict[str, list[Tensor]]](lambda: defaultdict(list))
    for seed in SEEDS:
        draw = Random(seed)
        concepts = draw.sample([name for name in concept_names()[0] if name.isalpha()], TRAINED + TESTED)
        with TemporaryDirectory() as kept:
            folder = Path(kept)
            known, questions = _facts(concepts[:TRAINED], folder / "train", draw)
            other, tests = _facts(concepts[TRAINED:], folder / "test", draw)
            for count in (1, WRONG + 1):
                rights["the search has it"][f"among the {count} nearest"].append(_found(other, tests, count))
            split = Split("facts", (), tuple(questions), (), (), root=str(folder / "train"))
            for case, epochs in TRAININGS.items():
                progress(f"{case}, seed {seed}")
                recipe = read_recipe("lora/chats", [("seed", seed), ("train.lr", 0.002)])
                model: Adapted = build(recipe, (), adapt.load_backbone("mini-vlm"))
                for passages, count in epochs.items():
                    made = folder / "train" / f"{passages}.jsonl"
                    made.write_text("\n".join(map(dump, known.rows(split, passages, 1.0, seed))))
                    fit_plan(plan_of(recipe, model, load(made), epochs=count), None)
                model.eval()
                for wrong in range(WRONG + 1):
                    asked = [_informed(other, item, wrong + 1, Random(Path(item.path).name)) for item in tests]
                    rights[case][f"{wrong} wrong"].append(right(model, asked))
                found = [_informed(other, item, WRONG + 1) for item in tests]
                rights[case][f"the {WRONG + 1} nearest"].append(right(model, found))
    for case, own in rights.items():
        yield {"case": case, "text": ", ".join(f"{name} {per_cent(values)}" for name, values in own.items())}


def _facts(concepts: Sequence[str], folder: Path, draw: Random) -> tuple[Retriever, list[Item]]:
    """Write the drawings of concepts to a folder, and return facts about them with a question about each drawing."""
    folder.mkdir()
    words = FACTS.split() * ceil(len(concepts) / len(FACTS.split()))
    facts = dict(zip(concepts, draw.sample(words, len(concepts)), strict=True))
    index = index_texts(adapt.wrap(backbone(), ZeroShot(), ("object",)), [FACT.format(*each) for each in facts.items()])
    items = []
    for number, item in enumerate(item for item in drawings("emoji-concepts").train if item.answer in facts):
        open_image(item).save(folder / f"{number}.png")
        chat = Chat.about(QUESTION, facts[item.answer])
        items.append(replace(item, paths=(f"{folder}/{number}.png",), label=Conversation(chat), text=QUESTION))
    return Retriever(index), items


def _found(retriever: Retriever, items: Sequence[Item], count: int) -> Tensor:
    """Return whether the right passage of each question is among the `count` nearest to its drawing."""
    found = []
    for item in items:
        chat = item.task.chat(item, "")
        entries = [retriever.index.entries[place] for place in retriever.nearest(chat, item.paths, count)]
        found.append(any(entry.endswith(f" {chat.answer}.") for entry in entries))
    return torch.tensor(found, dtype=torch.double)


def _informed(retriever: Retriever, item: Item, count: int, draw: Random | None = None) -> Item:
    """Return a question with its nearest passages or, with `draw`, the right one and wrong ones in random order."""
    chat = item.task.chat(item, "")
    nearest = retriever.nearest(chat, item.paths, TESTED)
    places = nearest[:count] if draw is None else retriever.noisy(nearest, chat.answer, count, 1.0, draw)
    return item.labelled(Conversation(retriever.before(chat, places)))
