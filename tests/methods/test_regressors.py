"""Ridge and kernel ridge regression: scikit-learn's numbers, their words, and what is chosen and compared with them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.data import Item, Split
from adapt.methods.base import Encoded, ImageStep, Method
from adapt.tasks.targets import Graded

NAMES = ("bad", "fair", "good", "perfect")


class Given:
    """A training whose features `(n, e)`, numbers `(n,)` and words `(n,)` are at hand."""

    def __init__(self, features: Tensor, values: Tensor, labels: Tensor) -> None:
        self._features, self._values, self._labels = features, values, labels

    def features(self, part: str) -> Tensor:
        return self._features

    def values(self, part: str) -> Tensor:
        return self._values

    def labels(self, part: str) -> Tensor:
        return self._labels

    def items(self, part: str) -> list[Item]:
        return [Item.of(path=f"{number}.png", target="1") for number in range(len(self._values))]


def images(count: int = 40, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, numbers from about 100 to 200 that follow from them, and words by quarters; no image is good."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(count, width), dim=-1)
    values = 150 + 100 * features[:, 0].double() + 80 * features[:, 1].double().square()
    labels = torch.bucketize(values, values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)))
    return features, values, labels.where(labels != 2, 3)


def fitted(method: Method, data: tuple[Tensor, Tensor, Tensor], names: tuple[str, ...] = NAMES) -> Any:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), method, names)
    method.prepare(Given(*data))  # type: ignore[arg-type]
    method.finish(Given(*data))  # type: ignore[arg-type]
    return model.eval()


def numbers(model: Any, features: Tensor) -> Tensor:
    with torch.no_grad():
        return model.method.score(model.method.logits(ImageStep(model, Encoded(features))))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("ridge", {"alpha": 0.3}), ("ridge", {"alpha": 30.0}), ("kernel_ridge", {"alpha": 0.01, "gamma": 2.0})],
)
def test_numbers_are_scikit_learns_of_standardised_targets(method: str, settings: dict[str, float]) -> None:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    features, values, labels = images()
    plain = Ridge(**settings) if method == "ridge" else KernelRidge(kernel="rbf", **settings)
    theirs = TransformedTargetRegressor(plain, transformer=StandardScaler())
    theirs.fit(features[:30].double().numpy(), values[:30].numpy())
    model = fitted(methods.find(method)(**settings), (features[:30], values[:30], labels[:30]))
    ours = numbers(model, features[30:])
    assert ours.tolist() == pytest.approx(theirs.predict(features[30:].double().numpy()).tolist(), abs=2e-3)
    assert ours.std() > 0.2


@pytest.mark.parametrize("names", [NAMES, ("only",)])
def test_the_number_is_read_from_the_logits_of_any_words(names: tuple[str, ...]) -> None:
    """The word is the one whose images have the nearest mean target; a word without images is never the answer."""
    features, values, labels = images()
    model = fitted(methods.Ridge(alpha=0.1), (features, values, labels.clamp_max(len(names) - 1)), names)
    method = model.method
    exact = method.scale[0] + method.scale[1] * method.predicted(features).detach()
    assert numbers(model, features).tolist() == pytest.approx(exact.tolist(), abs=2e-3)
    logits = method.logits(ImageStep(model, Encoded(features))).detach()
    pooled = method.score(logits[:5].mean(0, keepdim=True))
    assert float(pooled.detach()) == pytest.approx(float(exact[:5].mean()), abs=2e-3)  # of an item of five images
    if len(names) > 1:
        means = torch.tensor([float(values[labels == label].mean()) for label in (0, 1, 3)])
        nearest = (exact[:, None] - means).abs().argmin(-1)
        assert logits.argmax(-1).tolist() == torch.tensor([0, 1, 3])[nearest].tolist()


def graded(split: Split) -> Split:
    """Two words, of which one has a single image, and numbers that the class gives, but for noise."""

    def of(items: Any) -> Any:
        return tuple(
            item.labelled(Graded("low" if place else "high", 10.0 * len(item.answer) + place / 7))
            for place, item in enumerate(items)
        )

    parts = {part: of(getattr(split, part)) for part in ("train", "val", "test")}
    return replace(split, class_names=("high", "low"), **parts)


@pytest.mark.parametrize("kind", ["open_clip", "vision"])
@pytest.mark.parametrize("method", ["ridge", "kernel_ridge"])
def test_an_adapter_predicts_without_scikit_learn(
    method: str, kind: str, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, backbone = graded(tiny_split), tiny_backbones.backbone("open_clip")
    if kind == "vision":
        backbone = adapt.load_backbone("vision:mini-clip")
    model = adapt.wrap(backbone, methods.find(method)(), split.class_names)
    result = adapt.fit(model, split.train, split.test, out=tmp_path / "run", progress=False)
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    again = adapt.load(tmp_path / "run", backbone)
    paths = [item.path for item in split.test]
    predicted = [each.number for each in again.predict(paths)]
    assert predicted == pytest.approx([each.number for each in model.predict(paths)])
    figures = result.metrics["adapted"]
    wrong = [abs(number - item.label.value) for number, item in zip(predicted, split.test, strict=True)]
    assert figures["mean_absolute_error"] == pytest.approx(sum(wrong) / len(wrong), abs=1e-3)
    assert result.metrics["chosen"]["mean_absolute_error"] > 0


def test_the_output_leads_with_the_error_beside_that_of_the_mean(tiny_split: Split) -> None:
    split = graded(tiny_split)
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Ridge(), split.class_names)
    result = adapt.fit(model, split.train, split.test, progress=False)
    values = [item.label.value for item in split.train]
    mean = sum(values) / len(values)
    apart = [abs(item.label.value - mean) for item in split.test]
    assert result.metrics["baseline"] == "mean"
    assert result.metrics["zero_shot"]["mean_absolute_error"] == pytest.approx(sum(apart) / len(apart))
    lines = str(result).splitlines()
    low, high = result.metrics["zero_shot"]["intervals"]["mean_absolute_error"]
    error = f"mean       MAE {sum(apart) / len(apart):.4g} ({low:.4g} to {high:.4g})"
    assert lines[1].startswith(f"{error}, Spearman 0.000, Pearson 0.000, R² ")
    low, high = result.metrics["adapted"]["intervals"]["mean_absolute_error"]
    error = f"adapted    MAE {result.metrics['adapted']['mean_absolute_error']:.4g} ({low:.4g} to {high:.4g})"
    assert lines[2].startswith(f"{error}, Spearman ")
    assert lines[3].startswith("words ")


@pytest.mark.full
def test_a_setting_within_half_a_standard_error_of_the_smallest_error_is_chosen(tiny_split: Split) -> None:
    split = graded(tiny_split)
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Ridge(), split.class_names)
    chosen = adapt.fit(model, split.train, progress=False).metrics["chosen"]
    assert chosen["how"] == f"by cross-validation over {len(split.train)} training images"  # the only high one too
    errors = {}
    for alpha in chosen["among"]["alpha"]:
        other = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Ridge(alpha=alpha), split.class_names)
        adapt.fit(other, split.train, progress=False)
        from adapt.training.fitting import Fitting
        from adapt.training.plan import TrainingPlan

        apart = []
        for fold in Fitting(TrainingPlan(other, split.train)).folds():
            fold.prepare()
            found = numbers(other, fold.features("val"))
            apart += (found.double() - fold.values("val")).abs().tolist()
        errors[alpha] = torch.tensor(apart)
    best = min(errors.values(), key=lambda each: float(each.mean()))
    apart = {alpha: own - best for alpha, own in errors.items()}
    alike = [alpha for alpha, own in apart.items() if own.mean() <= 0.5 * own.std() / len(own) ** 0.5]
    usual = math.log10(methods.Ridge.choices["alpha"].usual)
    assert chosen["settings"]["alpha"] == min(alike, key=lambda alpha: abs(math.log10(alpha) - usual))
    assert len(alike) < len(errors)
    assert chosen["mean_absolute_error"] == pytest.approx(float(errors[chosen["settings"]["alpha"]].mean()), rel=1e-4)


def test_a_fold_of_equal_targets_is_a_fold_and_a_temperature_is_refused(tiny_split: Split) -> None:
    split = graded(tiny_split)
    rare = [replace(item, label=replace(item.label, value=float(not place))) for place, item in enumerate(split.train)]
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.Ridge(), split.class_names)
    chosen = adapt.fit(model, rare, progress=False).metrics["chosen"]
    assert chosen["how"].startswith("by cross-validation")  # without the rare target, one fold has zeros alone
    alike = [replace(item, label=replace(item.label, value=7.0)) for item in split.train]
    adapt.fit(model, alike, progress=False)
    assert numbers(model, torch.randn(3, model.backbone.embed_dim)).tolist() == pytest.approx([7.0] * 3, abs=1e-3)
    with pytest.raises(AdaptError, match="needs one class per image or several labels, but the data has a number"):
        adapt.fit(model, split.train, calibrate=True, progress=False)


def test_a_method_of_classes_says_that_it_learns_words(tiny_split: Split, caplog: pytest.LogCaptureFixture) -> None:
    split = graded(tiny_split)
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), methods.LinearProbe(strength=1.0), split.class_names)
    adapt.fit(model, split.train, progress=False)
    assert "linear_probe learns the words of the targets (high, low), and predicts no number" in caplog.text


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "adapt")


def test_zero_shot_words_are_not_blended_into_numbers(tiny_split: Split, open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.Ridge(alpha=1.0), ("high", "low"))
    with pytest.raises(AdaptError, match="ridge predicts a number, into which no zero-shot logits can be blended"):
        model.blended(0.5)


@pytest.mark.parametrize("method", ["ridge", "kernel_ridge"])
def test_numbers_with_a_large_offset_are_not_rounded(method: str) -> None:
    """fp32 has steps of 64 at 1e9, more than all these targets differ by."""
    features, values, labels = images()
    apart = values - values.mean()
    near, far = (fitted(methods.find(method)(alpha=0.1), (features, apart + offset, labels)) for offset in (0.0, 1e9))
    assert (numbers(far, features) - 1e9 - numbers(near, features)).abs().max() < 1e-3
