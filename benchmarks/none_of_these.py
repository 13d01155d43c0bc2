"""What is none of the classes: how well DetPro, CoOp and zero-shot tell it from what is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean, pstdev

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.data import Item, Split
from adapt.evaluation.evaluate import logits
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from adapt.training.run_recipe import learn
from benchmarks.drawings import SEEN, UNSEEN, backbone, built, drawings
from benchmarks.text import Row

SEEDS = (1, 2, 3)
NONE = "none"
KNOWN = drawings(SEEN).class_names[:12]
OTHERS = drawings(SEEN).class_names[12::2]  # whose images stand for all that is none of the known ones
NEVER_SEEN = drawings(SEEN).class_names[13::2]  # and these are what is to be told from them


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """AUROC of the largest probability among the known classes, and accuracy on these, by seed."""
    yield _row("zero-shot", [adapt.wrap(backbone(), ZeroShot(), KNOWN)])
    for method, classes in (("coop", KNOWN), ("detpro", (*KNOWN, NONE))):
        progress(method)
        yield _row(method, [_trained(method, classes, seed) for seed in SEEDS])


def _trained(method: str, classes: tuple[str, ...], seed: int) -> AdaptedModel:
    background = [("method.background", NONE)] if NONE in classes else []
    recipe = read_recipe(method, [("seed", seed), *background], SEEN)
    few = drawings(SEEN).few_shot(16, seed)
    split = Split("with none", classes, _items(few.train, classes), _items(few.val, classes), ())
    model = built(recipe, classes)
    learn(recipe, model, split, None, progress=False)
    return model.eval()


def _items(items: Sequence[Item], classes: tuple[str, ...]) -> tuple[Item, ...]:
    """Those of the classes; where one is for what is none of them, the other groups' too."""
    called = {name: name for name in KNOWN} | dict.fromkeys(OTHERS if NONE in classes else (), NONE)
    chosen = [(item, called[item.class_name]) for item in items if item.class_name in called]
    return tuple(replace(item, class_name=name, label=classes.index(name)) for item, name in chosen)


def _row(case: str, models: Sequence[AdaptedModel]) -> Row:
    cells = {}
    for spec in (SEEN, UNSEEN):
        found = [_measured(model, drawings(spec).test) for model in models]
        auroc, accuracy = zip(*found, strict=True)
        spread = f" ± {pstdev(auroc):.3f}" if len(auroc) > 1 else ""
        cells[spec] = f"{mean(auroc):.3f}{spread}, {100 * mean(accuracy):.1f} %"
    return {"case": case} | cells | {"text": f"{cells[SEEN]} | {cells[UNSEEN]}"}


def _measured(model: AdaptedModel, items: Sequence[Item]) -> tuple[float, float]:
    from sklearn.metrics import roc_auc_score

    groups = [[item for item in items if item.class_name in names] for names in (KNOWN, NEVER_SEEN)]
    known, never_seen = (torch.cat(list(logits(model, each)))[:, : len(KNOWN)] for each in groups)
    sure: Tensor = torch.cat([known, never_seen]).softmax(-1).max(-1).values
    is_known = torch.arange(len(sure)) < len(known)
    right = known.argmax(-1) == torch.tensor([KNOWN.index(item.class_name) for item in groups[0]])
    return float(roc_auc_score(is_known.numpy(), sure.numpy())), float(right.double().mean())
