"""Left and right of captions told apart: before training, by plain contrast, and with wrong twins (SVLC, VladVA)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.base import DualEncoder
from adapt.backbones.embedding import EmbeddingVLM
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from benchmarks.drawings import SEEN, drawings, per_cent, row_of, trained, zero_shot
from benchmarks.measure import Row

SEEDS = (1,)  # a training takes some minutes
CAPTIONS, OF_UNSEEN_STYLE = "emoji-captions", "emoji-captions@fluent-3d"
_TURNED = {"left": "right", "right": "left"}
_PLAIN: list[tuple[str, object]] = [("method.words", {})]  # no word has a twin


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report captions preferred to their twins, recall at 1 both ways, and the zero-shot accuracy that is left."""
    native = adapt.load_backbone("embed:mini-vlm")
    assert isinstance(native, DualEncoder)
    yield _row("zero-shot", [zero_shot()])
    yield _row("embed:mini-vlm", [adapt.wrap(native, ZeroShot(), ()).eval()])
    for case, name, changes in (
        ("plain contrast", "svlc", _PLAIN),
        ("with twins", "svlc", []),
        ("vladva", "vladva", []),
        ("vladva, with twins", "vladva", [("method.twins", True)]),
    ):
        progress(case)
        recipes = [read_recipe(name, [("seed", seed), *changes], CAPTIONS) for seed in SEEDS]
        on = native if name == "vladva" else None
        yield _row(case, [trained(recipe, drawings(CAPTIONS), on) for recipe in recipes])


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    figures = defaultdict[str, list[Tensor]](list)
    for model in models:
        for spec in (CAPTIONS, OF_UNSEEN_STYLE):
            items = drawings(spec).test
            figures[f"twins, {spec}"].append(preferred(model, items))
            for way, shares in (evaluate(model, items).figures()["recall"]).items():
                figures[f"{way}, {spec}"].append(torch.tensor(shares["1"]))
        if not isinstance(model.backbone, EmbeddingVLM):  # whose tokenizer reads two names of classes alike
            classes = model.with_classes(drawings(SEEN).class_names)
            figures["zero-shot"].append(torch.tensor(evaluate(classes, drawings(SEEN).test).accuracy))
    return row_of(case, {name: per_cent(values) for name, values in figures.items()})


def preferred(model: AdaptedModel, items: Sequence[Item]) -> Tensor:
    """Return which captions with a left and a right are nearer to their images than with the sides turned."""
    chosen = [item for item in items if re.search(r"\b(left|right) of\b", item.text)]
    turned = [re.sub(r"\b(left|right)\b", lambda side: _TURNED[side.group()], item.text) for item in chosen]
    transform = model.transform()
    with torch.no_grad():
        images = model.image_features(torch.stack([transform(adapt.data.open_image(item)) for item in chosen]))
        right, wrong = (model.encode_texts(texts) for texts in ([item.text for item in chosen], turned))
    return ((images * right).sum(-1) > (images * wrong).sum(-1)).double()
