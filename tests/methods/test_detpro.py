"""DetPro: weights of classes, the answer `none`, and where its threshold comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate

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
    with pytest.raises(AdaptError, match=r"background is 'nine', which is no class; did you mean 'none'"):
        adapt.wrap(open_clip, methods.DetPro(background="nine"), NAMES)


def test_one_class_beside_the_background_is_none_to_tell_apart(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="detpro tells two classes apart, or more, from 'none'"):
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
