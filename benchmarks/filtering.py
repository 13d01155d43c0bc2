"""Training answers of which a fifth is wrong: what a filter by perplexity removes, and what it does for training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any, cast

import torch
from torch import Tensor

import adapt
from adapt.data import Item
from adapt.evaluation.inference import Inference
from adapt.evaluation.perplexity import lowest, perplexities
from adapt.methods import ZeroShot
from adapt.models.native_vlm import ChatModel
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import drawings, per_cent, right
from benchmarks.measure import Row

DATA, BACKBONE = "emoji-questions", "mini-vlm"
SEEDS = (1, 2, 3)
QUESTIONS, WRONG = 500, 0.2  # of the training set, and the share that gets the answer to another such question
SHARES = (0.8, 0.5)  # that are kept


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the share of wrong answers that is left, and the test accuracy of LoRA on what is kept."""
    reader = cast("ChatModel", adapt.wrap(adapt.load_backbone(BACKBONE), ZeroShot(), ()))
    wrong, after = defaultdict[str, list[Tensor]](list), defaultdict[str, list[Tensor]](list)
    for seed in SEEDS:
        clean = Random(seed).sample(drawings(DATA).train, QUESTIONS)
        spoiled = _spoiled(clean, seed)
        progress(f"reading, seed {seed}")
        values = perplexities(reader, spoiled, Inference(cache=False))
        sets: dict[str, Sequence[int]] = {"all": range(QUESTIONS)}
        sets |= {f"lowest {share:.0%}": lowest(values, share) for share in SHARES}
        sets["right ones alone"] = [place for place, item in enumerate(clean) if spoiled[place] == item]
        for case, kept in sets.items():
            progress(f"{case}, seed {seed}")
            wrong[case].append(torch.tensor([spoiled[place] != clean[place] for place in kept]).double())
            after[case].append(_right([spoiled[place] for place in kept], seed))
    for case in wrong:
        text = f"wrong answers {per_cent(wrong[case])} | test accuracy of LoRA {per_cent(after[case])}"
        yield {"case": case, "text": text}
    yield {"case": "without training", "text": f"test accuracy {per_cent([right(reader, drawings(DATA).test)])}"}


def _spoiled(items: Sequence[Item], seed: int) -> list[Item]:
    """Return items of which some have the answer to another question of the same words."""
    stream, spoiled = Random(f"wrong/{seed}"), list(items)
    by_question = defaultdict[str, list[str]](list)
    for item in items:
        by_question[item.label.columns["question"]].append(item.answer)
    for place in stream.sample(range(len(items)), round(WRONG * len(items))):
        label: Any = items[place].label
        others = [answer for answer in by_question[label.question] if answer != label.name]
        spoiled[place] = replace(items[place], label=replace(label, name=stream.choice(others)))
    return spoiled


def _right(known: Sequence[Item], seed: int) -> Tensor:
    split = drawings(DATA)
    recipe = read_recipe("lora/questions", [("seed", seed), ("train.epochs", 5)], DATA)
    model = build(recipe, split.class_names, adapt.load_backbone(BACKBONE))
    fit_plan(plan_of(recipe, model, replace(split, train=tuple(known), val=(), test=())), None)
    return right(model.eval(), split.test)
