"""Mean features of training images, which stand for class names on a backbone of images alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.data import Split
from adapt.models.features import item_features
from adapt.training.fitting import Fitting
from adapt.training.plan import planned

SHOTS = 4
STEPS = {"epochs": 1, "batch_size": 32, "lr": 0.002, "warmup_epochs": 0, "augment": "none", "workers": 0}


@pytest.fixture(scope="module")
def few() -> Split:
    whole = adapt.data.load("emoji").few_shot(SHOTS, 1)
    names = whole.class_names[:6]
    parts = [tuple(item for item in part if item.class_names[0] in names) for part in (whole.train, whole.test)]
    return Split("few", names, parts[0], (), parts[1][:40])


def model(few: Split, name: str, **settings: object) -> adapt.VisionModel:
    backbone = adapt.load_backbone("vision:mini-clip", "cpu")
    return adapt.wrap(backbone, methods.find(name)(**settings), few.class_names)


def means(few: Split) -> Tensor:
    """The unit-length means of the training images' unit-length features."""
    features = item_features(model(few, "nearest_mean"), few.train, workers=0)
    labels = torch.tensor([few.class_names.index(item.class_names[0]) for item in few.train])
    return torch.stack([F.normalize(features[labels == label].mean(0), dim=-1) for label in range(6)])


def fitting(few: Split, name: str, **settings: object) -> Fitting:
    return Fitting(planned(model(few, name, **settings), few.train, few.test, val_set=()))


@pytest.mark.parametrize(("name", "settings"), [("lora", {"towers": ["vision"]}), ("gda", {"views": 0})])
def test_they_are_the_class_features_before_the_first_step(few: Split, name: str, settings: dict[str, object]) -> None:
    steps = STEPS if name == "lora" else {}
    training = Fitting(planned(model(few, name, **settings), few.train, (), val_set=(), **steps))
    training.prepare()
    torch.testing.assert_close(training.classifier.class_features().detach(), means(few))
    assert isinstance(training.model.method.classifier.weight, torch.nn.Parameter) == (name == "lora")


def test_a_fold_has_the_means_of_its_own_images(few: Split) -> None:
    """Otherwise images would be held out whose features are in the means."""
    training = fitting(few, "gda", views=0)
    fold = training.folds()[0]
    fold.prepare()
    features, labels = fold.features("train"), fold.labels("train")
    own = torch.stack([F.normalize(features[labels == label].mean(0), dim=-1) for label in range(6)])
    torch.testing.assert_close(fold.classifier.class_features(), own)
    assert not torch.allclose(own, means(few), atol=1e-3)


@pytest.mark.parametrize("name", ["gda", "proker", "tip_adapter"])
def test_after_a_choice_by_folds_the_means_are_of_all_images(few: Split, name: str) -> None:
    fitted = model(few, name, views=0)
    adapt.fit(fitted, few.train, progress=False)
    torch.testing.assert_close(fitted.class_features(), means(few))


def test_the_baseline_is_the_nearest_mean(few: Split, tmp_path: Path) -> None:
    result = adapt.fit(model(few, "knn", neighbours=1), few.train, few.test, progress=False, out=tmp_path / "run")
    nearest = adapt.fit(model(few, "nearest_mean"), few.train, few.test, progress=False)
    assert result.metrics["baseline"] == "nearest mean"
    assert result.metrics["zero_shot"]["accuracy"] == nearest.metrics["adapted"]["accuracy"] > 0.5


def test_training_goes_on_from_the_trained_means(few: Split, tmp_path: Path) -> None:
    first = model(few, "ln_tuning", towers=["vision"])
    adapt.fit(first, few.train, progress=False, out=tmp_path / "run", **STEPS)
    trained = first.method.classifier.weight.detach().clone()
    assert float((F.normalize(trained, dim=-1) - means(few)).abs().max()) > 1e-4
    again = model(few, "ln_tuning", towers=["vision"])
    again.method.load_state_dict(first.method.state_dict())
    again.started = True
    Fitting(planned(again, few.train, (), val_set=(), **STEPS)).prepare()
    torch.testing.assert_close(again.method.classifier.weight.detach(), trained)


def test_every_class_needs_an_image(few: Split) -> None:
    lora = model(few, "lora", towers=["vision"])
    without = [item for item in few.train if item.class_names[0] != few.class_names[0]]
    with pytest.raises(AdaptError, match=f"vision:mini-clip needs an image of every class, but {few.class_names[0]!r}"):
        adapt.fit(lora, without, progress=False, **STEPS)


def test_other_tasks_are_refused() -> None:
    pairs = [adapt.data.Item.of(path="a.png", text=text) for text in ("one", "two")]
    backbone = adapt.load_backbone("vision:mini-clip", "cpu")
    lora = adapt.wrap(backbone, methods.LoRA(towers=["vision"]), ("a", "b"))
    with pytest.raises(AdaptError, match="vision:mini-clip is a vision encoder: use a dual encoder"):
        adapt.fit(lora, pairs, progress=False, **STEPS)
