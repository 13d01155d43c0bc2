"""Captions before questions (CG-VLM, VLAP, OLA-VLM, LiMBeR): answers after captions with a loss beside theirs.

The papers' effect needs two stages: the projector learns from many images with captions, with the loss in question
beside that of the answers, and what it gained shows when few questions follow. Here the captions of the training scenes
follow the image without a question, as in LLaVA's first stage, and a tenth of the questions come then, with the loss of
answers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

import adapt
from adapt.backbones.vision_llm import VisionLLM
from adapt.data import Item, Split
from adapt.methods import OLAVLM
from adapt.models.vision_llm import SpeakingModel
from adapt.recipe import Recipe, read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks.drawings import drawings, paired, per_cent, right, row_of
from benchmarks.measure import Row

CAPTIONS, QUESTIONS, ONE_IN = "emoji-captions", "emoji-questions", 10
PROMPT, BEFORE = "<image>{}", "picture:"  # a caption after "what is in the picture?" made the questions harder to learn
EPOCHS = {CAPTIONS: 2, QUESTIONS: 12}  # chosen on answers alone, seed 1, which learned little in 4 and 5
SEEDS = (1, 2, 3)
ALONE, NONE = "answers alone", "answers alone, without captions"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # a recipe and settings
    ALONE: ("projector", {}),
    "words (CG-VLM)": ("projector", {"align": "words"}),
    "assignment (VLAP)": ("projector", {"align": "assignment"}),
    "features of mini-clip-half (OLA-VLM)": ("ola_vlm", {}),
    "a linear map (LiMBeR)": ("projector", {"kind": "linear", "dropout": 0.1}),
    NONE: ("projector", {}),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report how many questions of the test are answered right, beside two controls.

    Intervals are over questions, and the differences of each seed follow in brackets.
    """
    rights: dict[str, list[Tensor]] = {case: [] for case in ARMS}
    for seed in SEEDS:
        for case in ARMS:
            progress(f"{case}, seed {seed}")
            rights[case].append(_right(case, seed))
    for case, ours in rights.items():
        apart = {other: f"to {other}: {_apart(ours, rights[other])}" for other in (ALONE, NONE) if other != case}
        yield row_of(case, {"accuracy": per_cent(ours)} | apart)


def _apart(ours: list[Tensor], others: list[Tensor]) -> str:
    seeds = [100 * float((one - other).mean()) for one, other in zip(ours, others, strict=True)]
    return f"{paired(ours, others, drawings(QUESTIONS).test)} ({', '.join(f'{each:+.1f}' for each in seeds)})"


def _right(case: str, seed: int) -> Tensor:
    name, settings = ARMS[case]
    changes = [("seed", seed), *((f"method.{key}", value) for key, value in settings.items())]
    recipe = read_recipe(name, changes, QUESTIONS)
    model = cast("SpeakingModel", build(recipe, (), _backbone()))
    if case != NONE:
        captions = [Item.of(path=item.paths[0], question=BEFORE, label=item.text) for item in drawings(CAPTIONS).train]
        with patch.object(_backbone(), "prompt", PROMPT):
            _learn(recipe, model, _split(captions), EPOCHS[CAPTIONS])
    _leave_answers_alone(model.method)
    known = drawings(QUESTIONS).train
    _learn(recipe, model, _split(Random(seed).sample(known, len(known) // ONE_IN)), EPOCHS[QUESTIONS])
    return right(model.eval(), drawings(QUESTIONS).test)


@cache
def _backbone() -> VisionLLM:
    """Return the backbone, whose frozen tower encodes an image once for all trainings: that is a third of a step."""
    backbone = adapt.load_backbone("mini-clip+mini-lm", "cpu")
    assert isinstance(backbone, VisionLLM)
    encode, kept = backbone.tokens, dict[bytes, Tensor]()

    def tokens(images: Tensor) -> Tensor:
        names = [image.numpy().tobytes() for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in kept}
        if new:
            kept.update(zip(new, encode(torch.stack([*new.values()])), strict=True))
        return torch.stack([kept[name] for name in names])

    backbone.tokens = tokens  # type: ignore[method-assign]
    return backbone


def _split(items: list[Item]) -> Split:
    names = dict.fromkeys(name for item in items for name in item.class_names)
    return Split("stage", tuple(names), tuple(items), (), ())


def _learn(recipe: Recipe, model: SpeakingModel, split: Split, epochs: int) -> None:
    fit_plan(plan_of(recipe, model, split, epochs=epochs), None)


def _leave_answers_alone(method: Any) -> None:
    """Take the loss beside that of the answers from a method, and freeze OLA-VLM's tokens, as in its second stage."""
    method.loss = lambda step: step.task_loss()
    if isinstance(method, OLAVLM):
        method.task_tokens.requires_grad_(False)
