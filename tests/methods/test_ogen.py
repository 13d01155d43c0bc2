"""OGEN: what its generator is made of, that it trains and is not saved, and both phases."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stopping import assert_goes_on_exactly

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split
from adapt.training.loop import finite

STEPS = {"epochs": 5, "batch_size": 4, "lr": 0.1, "warmup_epochs": 0, "augment": "none", "progress": False}


def wrapped(backbone: Backbone, names: tuple[str, ...], **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(backbone, methods.OGEN(unknown_names=["toy", "apple pie", "cup"], **settings), names)


def test_the_generator_trains_and_no_adapter_has_it(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    model = wrapped(open_clip, tiny_split.class_names)
    before = {key: value.clone() for key, value in model.method.generator.state_dict().items()}
    adapt.fit(model, tiny_split.train, **STEPS)
    after = model.method.generator.state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before if "in_proj_bias" not in key)
    assert set(model.method.state_dict()) == {"ctx"}
    path = model.save(tmp_path / "a.safetensors")
    assert set(adapt.load(path, open_clip).method.state_dict()) == {"ctx"}


def test_at_first_only_the_generator_learns(open_clip: Backbone, tiny_split: Split) -> None:
    model, seen = wrapped(open_clip, tiny_split.class_names), []
    start = model.method.ctx.detach().clone()
    loss = model.method.loss

    def watched(step: Any) -> Any:
        terms = loss(step)
        seen.append((set(terms), torch.equal(model.method.ctx, start)))
        return terms

    model.method.loss = watched
    adapt.fit(model, tiny_split.train, **STEPS | {"weight_decay": 0.0})
    alone = [terms for terms, same in seen if same]
    first = len(seen) // 5  # of five epochs, one
    assert all(terms == {"unknown", "known"} for terms, _ in seen[:first])
    assert all(same for _, same in seen[: first + 1])
    assert not seen[-1][1]
    assert {"image_class", "unknown_class", "known_class", "new_class"} < seen[-1][0]
    assert len(alone) == first + 1


def test_statistics_are_those_of_each_class(open_clip: Backbone, tiny_split: Split) -> None:
    model = wrapped(open_clip, tiny_split.class_names, neighbours=2)
    adapt.fit(model, tiny_split.train, **STEPS)
    features = adapt.models.features.item_features(model, tiny_split.train, workers=0)
    labels = tiny_split.task.numbers(tiny_split.train, tiny_split.class_names)
    for label in range(3):
        assert torch.allclose(model.method._mean[label], features[labels == label].mean(0), atol=1e-5)
        assert label not in model.method._near[label]
    assert model.method._near.shape == (3, 2)


def test_a_resumed_training_keeps_its_generator(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    """The teacher, which is made of past contexts, too."""
    models: list[AdaptedModel] = []

    def new() -> AdaptedModel:
        models.append(wrapped(open_clip, tiny_split.class_names, teacher=10.0))
        return models[-1]

    assert_goes_on_exactly(new, partial(adapt.fit, train_set=tiny_split.train, **STEPS), tmp_path / "run", step=13)
    whole, _, resumed = (model.method.generator.state_dict() for model in models)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_it_counts_epochs_and_needs_two_classes(open_clip: Backbone, tiny_split: Split) -> None:
    model = wrapped(open_clip, tiny_split.class_names)
    with pytest.raises(AdaptError, match=r"train\.epochs is missing: set the number of epochs"):
        adapt.fit(model, tiny_split.train, iterations=3, schedule="constant", augment="none", progress=False)
    with pytest.raises(AdaptError, match="the only class is 'cat'"):
        wrapped(open_clip, ("cat",))


def test_unknown_names_are_checked_as_class_names_are(open_clip: Backbone, tiny_split: Split) -> None:
    names = tiny_split.class_names
    for unknown, expected in (
        (["toy", "toy"], "'toy' appears 2 times"),
        (["toy", " "], "is empty"),
        (["toy", "very " * 99], "tokens but the text tower reads 77"),
        (["toy", "Toy"], "have the same tokens"),
        ([names[0], "toy"], f"unknown_names has '{names[0]}', which is a class with images"),
    ):
        with pytest.raises(AdaptError, match=expected):
            adapt.wrap(open_clip, methods.OGEN(unknown_names=unknown), names)
    with pytest.raises(AdaptError, match="class_specific leaves unknown_names without context"):
        methods.OGEN(unknown_names=["toy"], class_specific=True, ctx_init="")


def test_a_generator_that_broke_is_not_kept(open_clip: Backbone, tiny_split: Split) -> None:
    model = wrapped(open_clip, tiny_split.class_names)
    assert finite(model.method)
    with torch.no_grad():
        next(model.method.generator.parameters()).fill_(float("nan"))
    assert not finite(model.method)
