"""Left and right of captions told apart: before training, by plain contrast, and with wrong twins (SVLC)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.data import Item
from adapt.evaluation.evaluate import evaluate
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from adapt.training.run_recipe import learn
from benchmarks.drawings import SEEN, backbone, built, drawings, per_cent
from benchmarks.text import Row

SEEDS = (1,)  # a training takes some minutes
CAPTIONS, OF_UNSEEN_STYLE = "emoji-captions", "emoji-captions@fluent-3d"
_TURNED = {"left": "right", "right": "left"}
_PLAIN: list[tuple[str, object]] = [("method.words", {})]  # no word has a twin


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Captions preferred to their twins, of two; recall at 1 both ways; and what is left of zero-shot accuracy."""
    yield _row("zero-shot", [adapt.wrap(backbone(), ZeroShot(), ())])
    for case, changes in (("plain contrast", _PLAIN), ("with twins", [])):
        progress(case)
        yield _row(case, [_trained(changes, seed) for seed in SEEDS])


def _trained(changes: list[tuple[str, object]], seed: int) -> AdaptedModel:
    recipe = read_recipe("svlc", [("seed", seed), *changes], CAPTIONS)
    model = built(recipe, ())
    learn(recipe, model, drawings(CAPTIONS), None, progress=False)
    return model.eval()


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    found: dict[str, list[float]] = {}
    for model in models:
        for spec in (CAPTIONS, OF_UNSEEN_STYLE):
            items = drawings(spec).test
            found.setdefault(f"twins, {spec}", []).append(preferred(model, items))
            for way, shares in (evaluate(model, items).figures()["recall"]).items():
                found.setdefault(f"{way}, {spec}", []).append(shares["1"])
        classes = adapt.wrap(backbone(), ZeroShot(), drawings(SEEN).class_names)
        if model.method.touches:
            classes = model.with_classes(drawings(SEEN).class_names)
        found.setdefault("zero-shot", []).append(evaluate(classes, drawings(SEEN).test).accuracy)
    cells = {what: per_cent([torch.tensor(each) for each in values]) for what, values in found.items()}
    return {"case": case} | cells | {"text": " | ".join(cells.values())}


def preferred(model: AdaptedModel, items: Sequence[Item]) -> float:
    """The share of images with a left and a right whose caption is nearer than the one with the sides turned."""
    chosen = [item for item in items if re.search(r"\b(left|right) of\b", item.text)]
    turned = [re.sub(r"\b(left|right)\b", lambda found: _TURNED[found.group()], item.text) for item in chosen]
    transform = model.transform()
    with torch.no_grad():
        images = model.image_features(torch.stack([transform(adapt.data.open_image(item)) for item in chosen]))
        right, wrong = (model.encode_texts(texts) for texts in ([item.text for item in chosen], turned))
    nearer: Tensor = (images * right).sum(-1) > (images * wrong).sum(-1)
    return float(nearer.double().mean())
