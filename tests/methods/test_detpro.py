"""DetPro: weights of classes, grades of overlap, the answer `none`, and where its threshold comes from."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checks import relative
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.data import Item, Split
from adapt.evaluation.evaluate import evaluate
from adapt.methods.base import Encoded, ImageStep, total
from adapt.tasks.classes import Class

NAMES = ("cat", "none", "dog", "bird")


def test_weights_are_one_over_the_share_of_an_even_part(open_clip: Backbone) -> None:
    method = methods.DetPro(background="none")
    adapt.wrap(open_clip, method, NAMES)
    method.set_counts(torch.tensor([4, 6, 2, 12]), NAMES)
    # 24 images, 3 classes: a share of 1 would be 8 images of a class, and 12 of the background
    assert torch.allclose(method._weights, torch.tensor([8 / 4, 12 / 6, 8 / 2, 8 / 12]))


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.9])
def test_none_is_answered_where_no_class_is_as_probable_as_the_threshold(
    open_clip: Backbone, images: Tensor, threshold: float
) -> None:
    method = methods.DetPro(background="none")
    model = adapt.wrap(open_clip, method, NAMES).eval()
    method.threshold.fill_(threshold)
    with torch.no_grad():
        step = model.step(images, torch.zeros(len(images), dtype=torch.long))
        logits, sure = model(images), method.surest(step)
    assert logits.shape == (len(images), 4)
    assert torch.equal(logits.argmax(-1) == 1, sure < threshold)
    assert torch.equal(sure, logits[:, [0, 2, 3]].softmax(-1).max(-1).values)


def test_without_a_background_it_is_coops_answers(open_clip: Backbone, images: Tensor) -> None:
    coop = adapt.wrap(open_clip, methods.CoOp(n_ctx=8), NAMES).eval()
    model = adapt.wrap(open_clip, methods.DetPro(), NAMES).eval()
    model.method.ctx = coop.method.ctx
    scale = model.method.logit_scale / open_clip.logit_scale
    assert torch.allclose(model(images), scale * coop(images), atol=1e-4)


def test_a_background_that_is_no_class_is_named(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=r"background is 'nine', which is not a class; did you mean 'none'"):
        adapt.wrap(open_clip, methods.DetPro(background="nine"), NAMES)


def test_one_class_beside_the_background_is_none_to_tell_apart(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="expected two or more besides 'none'"):
        adapt.wrap(open_clip, methods.DetPro(background="none"), ("cat", "none"))


def test_the_threshold_is_chosen_and_saved(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    names = tiny_split.class_names
    model = adapt.wrap(open_clip, methods.DetPro(background=names[1]), names)
    steps = {"iterations": 5, "batch_size": 4, "lr": 0.1, "schedule": "constant", "augment": "none", "progress": False}
    result = adapt.fit(model, tiny_split.train, val_set=tiny_split.val, cache=False, **steps)
    searched = result.metrics["searched"]
    assert searched["threshold"] == pytest.approx(float(model.method.threshold))
    val = evaluate(model, tiny_split.val, workers=0, cache=False)
    none = torch.tensor([name == names[1] for name in val.actual])
    answered = torch.tensor([name == names[1] for name in val.predicted])
    both = (answered[none].double().mean() + (~answered[~none]).double().mean()) / 2
    assert searched["val_accuracy_of_both"] == pytest.approx(float(both))
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)
    assert float(loaded.method.threshold) == float(model.method.threshold)


GRADES = (0.5, 0.7)


def graded(backbone: Backbone) -> adapt.AdaptedModel:
    """Two contexts, not from their start, with weights that tell the classes and the grades apart."""
    torch.manual_seed(0)
    model = adapt.wrap(backbone, methods.DetPro(n_ctx=4, background="none", grades=GRADES), NAMES)
    model.method.set_counts(torch.tensor([[4, 6, 2, 12], [1, 6, 3, 5]]), NAMES)
    return model


def of_regions(model: adapt.AdaptedModel, features: Tensor, labels: Tensor, overlaps: Tensor) -> ImageStep:
    step = model.step(Encoded(features), labels)
    step.values = overlaps
    return step


def test_the_contexts_of_grades_are_a_training_each_and_one_ensemble(open_clip: Backbone) -> None:
    """Against a method of one context for each grade, which has the grade's regions and all of the background."""
    model = graded(open_clip)
    features = F.normalize(torch.randn(7, open_clip.embed_dim), dim=-1)
    labels = torch.tensor([0, 1, 2, 3, 0, 2, 1])
    overlaps = torch.tensor([0.5, 0.1, 0.7, 0.69, 1.0, 0.9, 0.0])
    loss = total(model.method.loss(of_regions(model, features, labels, overlaps)))
    loss.backward()
    losses, each = [], []
    for grade, (counts, rows) in enumerate([([4, 6, 2, 12], [0, 1, 3, 6]), ([1, 6, 3, 5], [1, 2, 4, 5, 6])]):
        alone = adapt.wrap(open_clip, methods.DetPro(n_ctx=4, background="none"), NAMES)
        alone.method.set_counts(torch.tensor(counts), NAMES)
        alone.method.ctx.data.copy_(model.method.ctx[grade])
        losses.append(total(alone.method.loss(alone.step(Encoded(features[rows]), labels[rows]))))
        losses[-1].backward()
        assert relative(model.method.ctx.grad[grade], alone.method.ctx.grad) < 1e-4
        each.append(alone.class_features().detach())
    assert float(loss.detach()) == pytest.approx(float(sum(losses).detach()), rel=1e-5)
    assert torch.allclose(model.class_features(), F.normalize(each[0] + each[1], dim=-1), atol=1e-5)
    assert float((each[0] - each[1]).abs().max()) > 1e-3
    known = [0, 2, 3]
    expected = 100 * features @ model.class_features()[known].T
    assert torch.allclose(model.logits(features)[:, known], expected, atol=1e-3)


def test_a_grade_without_a_region_in_the_batch_learns_nothing_of_classes(open_clip: Backbone) -> None:
    model = graded(open_clip)
    features = F.normalize(torch.randn(2, open_clip.embed_dim), dim=-1)
    step = of_regions(model, features, torch.tensor([0, 2]), torch.tensor([0.6, 0.5]))
    total(model.method.loss(step)).backward()
    first, second = model.method.ctx.grad
    assert float(first.abs().max()) > 0
    assert float(second.abs().max()) == 0


def overlapping(split: Split, overlaps: tuple[float, ...], none: str) -> tuple[Item, ...]:
    """Training items with overlaps by turns, those of the background with 0."""
    found = zip(split.train, itertools.cycle(overlaps))
    return tuple(item.labelled(Class(item.answer, 0.0 if item.answer == none else overlap)) for item, overlap in found)


STEPS = {"iterations": 3, "batch_size": 6, "lr": 0.1, "schedule": "constant", "augment": "none", "progress": False}


def test_grades_are_learned_saved_and_loaded(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    names = tiny_split.class_names
    method = methods.DetPro(n_ctx=4, background=names[1], grades=GRADES)
    model = adapt.wrap(open_clip, method, names)
    before = method.ctx.detach().clone()
    adapt.fit(model, overlapping(tiny_split, (0.55, 0.8), names[1]), cache=False, **STEPS)
    assert all(float((now - then).detach().abs().max()) > 1e-4 for now, then in zip(method.ctx, before, strict=True))
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), open_clip)
    assert loaded.method.config.grades == GRADES
    assert torch.equal(loaded.class_features(), model.class_features())


@pytest.mark.parametrize(
    ("overlaps", "message"),
    [
        ((), "detpro with grades learns from the overlaps of regions with the box of their object, but the data"),
        ((0.4, 0.8), "has an overlap of 0.4; expected at least 0.5, the lowest of method.grades: label the region"),
        (
            (0.55, 0.6),
            r"no training region of a known class has an overlap from 0.7 to 1, which is a grade in method.grades",
        ),
    ],
)
def test_overlaps_that_grades_cannot_be_learned_from(
    open_clip: Backbone, tiny_split: Split, overlaps: tuple[float, ...], message: str
) -> None:
    names = tiny_split.class_names
    model = adapt.wrap(open_clip, methods.DetPro(background=names[1], grades=GRADES), names)
    items = overlapping(tiny_split, overlaps, names[1]) if overlaps else tiny_split.train
    with pytest.raises(AdaptError, match=message):
        adapt.fit(model, items, cache=False, **STEPS)


@pytest.mark.parametrize("grades", [(0.5,), (0.7, 0.5), (0.5, 1.0), (-0.1, 0.5)])
def test_grades_that_are_none(grades: tuple[float, ...]) -> None:
    with pytest.raises(AdaptError, match="expected two or more rising numbers from 0 to below 1"):
        methods.DetPro(grades=grades)
