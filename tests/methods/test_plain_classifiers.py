"""Logistic regression, LDA, nearest neighbours and the nearest mean: scikit-learn's answers, with and without words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.methods import linear_probe
from adapt.methods.base import Choice, Encoded, Method
from adapt.methods.base.plain_classifier import against_covariance
from adapt.methods.lda import ledoit_wolf

NAMES = ("goldfish", "red_panda", "sea cucumber")


class Given:
    """A training whose features `(n, e)` and labels `(n,)` are at hand."""

    def __init__(self, features: Tensor, labels: Tensor, model: Any = None) -> None:
        self._features, self._labels = features, labels
        self.model = self.classifier = model

    def prepare(self) -> None:
        self.model.method.prepare(self)

    def features(self, part: str, **options: Any) -> Tensor:
        return self._features

    def labels(self, part: str) -> Tensor:
        return self._labels

    def shares(self, part: str) -> Tensor:
        return F.one_hot(self._labels).double()


def images(classes: int, each: int = 12, spread: float = 0.25) -> tuple[Tensor, Tensor]:
    """Unit-length features of as many images of each class, around one axis a class."""
    labels = torch.arange(classes).repeat(each)
    return F.normalize(torch.eye(classes, 64)[labels] + spread * torch.randn(len(labels), 64), dim=-1), labels


def fitted(backbone: Backbone, method: Method, train: tuple[Tensor, Tensor]) -> AdaptedModel:
    torch.manual_seed(0)
    names = NAMES[: int(train[1].max()) + 1]
    model = adapt.wrap(backbone, method, names)
    method.prepare(Given(*train))  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("strength", [0.001, 1.0, 1000.0])
@pytest.mark.parametrize("weights", ["equal", "balanced"])
def test_the_probe_has_the_logits_of_scikit_learns_logistic_regression(
    open_clip: Backbone, strength: float, weights: Any
) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = images(3)
    features, labels = features[:-4], labels[:-4]  # not as many of each class
    model = fitted(open_clip, methods.LinearProbe(strength=strength, class_weights=weights), (features, labels))
    given = None if weights == "equal" else "balanced"
    solver = LogisticRegression(C=strength, class_weight=given, tol=1e-10, max_iter=100_000)
    expected = solver.fit(features.double().numpy(), labels.numpy()).decision_function(features.double().numpy())
    ours, theirs = model.logits(features), torch.from_numpy(expected).float()
    assert (ours - ours.mean(1, keepdim=True) - (theirs - theirs.mean(1, keepdim=True))).abs().max() < 1e-4


def test_two_classes_have_a_row_each_whose_difference_is_scikit_learns(open_clip: Backbone) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = images(2)
    model = fitted(open_clip, methods.LinearProbe(strength=10.0), (features, labels))
    solver = LogisticRegression(C=10.0, tol=1e-10, max_iter=100_000).fit(features.double().numpy(), labels.numpy())
    expected = torch.from_numpy(solver.decision_function(features.double().numpy())).float()
    ours = model.logits(features)
    assert model.method.weight.shape == (2, 64)
    assert (ours[:, 1] - ours[:, 0] - expected).abs().max() < 1e-4


def test_lda_is_scikit_learns_on_one_covariance(open_clip: Backbone) -> None:
    """Scikit-learn's own classifier, given the shrunk covariance of all deviations, has the same scores."""
    from sklearn.covariance import ledoit_wolf
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, labels = (tensor[:-4] for tensor in images(3))
    x, y = features.double().numpy(), labels.numpy()
    apart = x - np.stack([x[y == label].mean(0) for label in range(3)])[y]
    covariance = ledoit_wolf(apart, assume_centered=True)[0] * len(x) / (len(x) - 3)

    class Shrunk:
        def fit(self, given: Any) -> Any:
            self.covariance_ = covariance
            return self

    solver = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Shrunk()).fit(x, y)
    model = fitted(open_clip, methods.LDA(ridge=0.0), (features, labels))
    expected, ours = torch.from_numpy(solver.decision_function(x)).float(), model.logits(features)
    assert scaled(ours, expected) < 1e-4


@pytest.mark.parametrize(("images", "wide"), [(12, 40), (90, 40)])
def test_a_few_images_of_wide_features_have_the_same_covariance(images: int, wide: int) -> None:
    """Its shrinkage is scikit-learn's, and what it weighs by the smaller matrix is what the larger one gives."""
    from sklearn.covariance import ledoit_wolf as reference

    draw = torch.Generator().manual_seed(images)
    apart = torch.randn(images, wide, generator=draw, dtype=torch.double) * torch.linspace(0.1, 2, wide)
    shrinkage, trace = ledoit_wolf(apart)
    covariance, expected = reference(apart.numpy(), assume_centered=True)
    assert shrinkage == pytest.approx(expected, rel=1e-12)
    assert trace == pytest.approx(np.trace(covariance), rel=1e-12)
    rows = torch.randn(3, wide, generator=draw, dtype=torch.double)
    for ridge, factor in ((shrinkage * trace / wide, (1 - shrinkage) / images), (1e-6, 1.0), (2.0, 0.0)):
        plain = factor * apart.T @ apart + ridge * torch.eye(wide, dtype=torch.double)
        weighed = rows @ torch.linalg.inv(plain)
        assert scaled(against_covariance(rows, apart, ridge, factor), weighed) < 1e-8


def test_a_ridge_of_one_is_what_gda_adds(open_clip: Backbone) -> None:
    """On many images of few numbers nothing is shrunk, and a ridge of one is GDA's prior, up to the scale of all."""
    from adapt.methods.gda import shrunk_precision

    train = images(3, each=3000, spread=0.5)
    model = fitted(open_clip, methods.LDA(ridge=1.0), train)
    features, labels = train[0].double(), train[1]
    means = torch.stack([features[labels == label].mean(0) for label in range(3)])
    apart = features - means[labels]
    weight = means @ shrunk_precision(apart.T.cov(), len(apart))
    ours = model.method.weight.double()
    assert scaled(ours / ours.norm(), weight / weight.norm()) < 2e-2
    assert scaled(fitted(open_clip, methods.LDA(ridge=100.0), train).method.weight, model.method.weight) > 0.1


def test_several_ridges_are_one_classifier_with_the_mean_of_their_logits(open_clip: Backbone, tmp_path: Path) -> None:
    """By their shares, whatever these add up to; the file holds one classifier, and the shares."""
    train, (others, _) = images(3), images(3)
    shares = {0.0: 0.6, 0.2: 1.5, 5.0: 0.9}
    solved = {ridge: methods.LDA(ridge=ridge) for ridge in shares}
    averaged = fitted(open_clip, methods.LDA(ridge=shares), train)
    expected = torch.zeros(len(others), 3, dtype=torch.double)
    for ridge, share in shares.items():
        weight, bias = fitted(open_clip, solved[ridge], train).method.solve(train[0].double(), train[1])
        expected += share / 3 * (others.double() @ weight.T + bias)
    weight, bias = averaged.method.solve(train[0].double(), train[1])
    assert scaled(others.double() @ weight.T + bias, expected) < 1e-12
    assert scaled(averaged.logits(others), expected.float()) < 1e-5
    alone = fitted(open_clip, methods.LDA(ridge={0.2: 0.3}), train)
    assert torch.equal(alone.method.weight, solved[0.2].weight)
    loaded = adapt.load(averaged.save(tmp_path / "adapter.safetensors"), open_clip)
    assert loaded.method.config.ridge == shares
    assert torch.equal(loaded.logits(others), averaged.logits(others))


@pytest.mark.parametrize(
    ("ridge", "said"),
    [
        (-1.0, "ridge is -1.0: Input should be greater than or equal to 0"),
        ({-1: 1}, "ridge is -1: Input should be greater than or equal to 0"),
        ({1: 0}, "ridge is 0: Input should be greater than 0"),
        ({"one": 1}, "ridge is 'one': Input should be a valid number"),
    ],
)
def test_ridges_and_shares_that_cannot_be(ridge: Any, said: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(said)):
        methods.LDA(ridge=ridge)


def test_lda_with_one_image_a_class_is_the_nearest_mean(open_clip: Backbone) -> None:
    train, others = images(3, each=1), images(3)[0]
    one, other = (fitted(open_clip, method, train).logits(others) for method in (methods.LDA(), methods.NearestMean()))
    assert scaled(one, other) < 1e-5


def test_the_nearest_mean_is_a_cosine_at_the_backbones_scale(open_clip: Backbone) -> None:
    features, labels = images(3)
    model = fitted(open_clip, methods.NearestMean(), (features, labels))
    means = F.normalize(torch.stack([features[labels == label].mean(0) for label in range(3)]), dim=-1)
    assert scaled(model.logits(features), open_clip.logit_scale * features @ means.T) < 1e-5


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_neighbours_answer_as_scikit_learns(open_clip: Backbone, neighbours: int) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, (others, _) = images(3, spread=0.5), images(3, spread=0.5)
    model = fitted(open_clip, methods.KNN(neighbours=neighbours), train)
    solver = KNeighborsClassifier(neighbours).fit(*(tensor.numpy() for tensor in train))
    votes = torch.from_numpy(solver.predict_proba(others.numpy()))
    clear = votes.topk(2).values[:, 0] > votes.topk(2).values[:, 1]
    assert clear.float().mean() > 0.6
    assert torch.equal(model.logits(others).argmax(-1)[clear], votes.argmax(-1)[clear])


def test_a_tie_goes_to_the_nearer_image(open_clip: Backbone) -> None:
    features = F.normalize(torch.eye(3, 64) + 0.1, dim=-1)
    model = fitted(open_clip, methods.KNN(neighbours=2), (features, torch.tensor([2, 1, 0])))
    between = F.normalize(0.9 * features[:1] + 0.5 * features[1:2], dim=-1)
    assert model.logits(between).argmax() == 2


PLAIN = (methods.LinearProbe, methods.LDA, methods.NearestMean, methods.KNN)


def test_neighbours_tie_by_nearness_in_half_precision_too(open_clip: Backbone) -> None:
    model = fitted(open_clip, methods.KNN(neighbours=5), images(3, spread=0.5))
    others = images(3, spread=0.5)[0]
    scores = model.method.scores(others.bfloat16())
    assert scores.dtype == torch.float32
    assert torch.equal(scores.argmax(-1), model.method.scores(others.bfloat16().float()).argmax(-1))


@pytest.mark.parametrize("kind", PLAIN)
def test_words_are_added_by_their_weight(open_clip: Backbone, kind: Any) -> None:
    features, labels = images(3)
    settings: dict[str, Any] = {"strength": 1.0} if kind is methods.LinearProbe else {}
    alone, beside = (fitted(open_clip, kind(words=words, **settings), (features, labels)) for words in (0.0, 2.5))
    zero_shot = adapt.wrap(open_clip, methods.ZeroShot(), NAMES).logits(features)
    assert scaled(beside.logits(features), alone.logits(features) + 2.5 * zero_shot) < 1e-5
    assert alone.method.prompts(open_clip.tokenizer, "goldfish") == []  # the text tower has nothing to do


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(("turned", "usual"), [(0, 1.0), (1, 0.0)])
def test_words_left_to_the_data_usually_count_where_class_names_help(
    open_clip: Backbone, kind: Any, turned: int, usual: float
) -> None:
    model = adapt.wrap(open_clip, kind(words=None), NAMES)
    labels = torch.arange(3).repeat(4)
    training: Any = Given(model.class_features().detach()[labels], (labels + turned) % 3, model)
    assert "words" not in kind().grid(training)
    choice = model.method.grid(training)["words"]
    assert choice.usual == usual
    assert 0.0 in choice.values


def test_labels_outside_the_classes_are_refused(open_clip: Backbone) -> None:
    model = fitted(open_clip, methods.KNN(neighbours=1), images(3))
    tensors = {"labels": torch.tensor([0, 3])}
    with pytest.raises(AdaptError, match="the labels in here are 0 to 3, but there are 3 classes"):
        model.method.check_tensors(tensors, "here")


def test_an_image_of_every_class_is_needed(open_clip: Backbone) -> None:
    assert all(kind.needs_every_class for kind in PLAIN)
    model = fitted(open_clip, methods.LDA(), images(3))
    with pytest.raises(AdaptError, match="cannot serve other class names"):
        model.with_classes(["one", "two", "three"])
    assert model.method.logits(model.step(Encoded(images(3)[0]), None)).shape == (36, 3)  # type: ignore[arg-type]


def test_one_image_a_class_is_no_reason_to_warn(open_clip: Backbone, recwarn: pytest.WarningsRecorder) -> None:
    fitted(open_clip, methods.LinearProbe(strength=1.0), images(3, each=1))
    assert [str(each.message) for each in recwarn if "unique classes" in str(each.message)] == []


def test_a_probe_that_does_not_converge_says_what_to_set(
    open_clip: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    fitted(open_clip, methods.LinearProbe(strength=10.0), images(3))
    assert caplog.messages == []
    monkeypatch.setattr(linear_probe, "MOST_STEPS", 1)
    fitted(open_clip, methods.LinearProbe(strength=10.0), images(3))
    [message] = caplog.messages
    assert message.startswith("the logistic regression with strength 10 did not converge in 1 steps")
    assert [str(each.message) for each in recwarn if "converge" in str(each.message)] == []  # scikit-learn's own


def test_strengths_are_compared_by_rough_fits(open_clip: Backbone) -> None:
    """Each is a fit of its own, as near to the exact one as a gradient of 1e-4 makes it."""
    train, method = images(3), methods.LinearProbe()
    training: Any = Given(*train, adapt.wrap(open_clip, method, NAMES))
    found = list(method.trials(training, {"strength": Choice((0.1, 10.0), usual=10.0)}))
    assert [settings for settings, _ in found] == [{"strength": 0.1}, {"strength": 10.0}]
    for settings, logits in found:
        exact = fitted(open_clip, methods.LinearProbe(**settings), train).logits(train[0])
        assert 1e-5 < scaled(logits, exact) < 1e-2


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(methods.KNN, {"neighbours": 3}), (methods.GDA, {"views": 0, "new_classes": True, "neighbours": 5})],
)
def test_an_adapter_holds_the_training_features_that_it_answers_by(
    open_clip: Backbone, kind: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    train, (others, _) = images(3), images(3)
    model = fitted(open_clip, kind(**settings), train)
    assert model.method.config.rows == 36
    loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), open_clip)
    assert torch.equal(loaded.method.features, train[0])
    assert torch.equal(loaded.logits(others), model.logits(others))


def test_gda_for_its_own_classes_holds_no_training_features(open_clip: Backbone) -> None:
    model = fitted(open_clip, methods.GDA(views=0), images(3))
    assert model.method.state_dict().keys() == {"weight", "bias"}
    assert model.method.config.rows is None


def test_gda_needs_as_many_training_features_as_model_a_new_class(open_clip: Backbone) -> None:
    train = images(3)
    for neighbours in (36, 37):
        settings: dict[str, Any] = {"views": 0, "new_classes": True, "neighbours": neighbours}
        new = fitted(open_clip, methods.GDA(**settings), train).with_classes(["kite", "dog"])
        if neighbours == 36:
            assert new.logits(train[0]).shape == (36, 2)
            continue
        with pytest.raises(AdaptError, match="by its 37 nearest training features, but only 36 exist"):
            new.logits(train[0])


@pytest.mark.parametrize(
    ("method", "settings", "grid"),
    [
        (methods.KNN, {}, {"neighbours": ((1, 3, 5, 9, 17), 1, False)}),
        (methods.KNN, {"neighbours": 3}, {}),
        (methods.LinearProbe, {}, {"strength": ((0.001, 0.01, 0.1, 1, 10, 100, 1000), 10, True)}),
        (methods.LinearProbe, {"strength": 1.0}, {}),
        (methods.LDA, {}, {"ridge": ((0.0, 0.2, 1.0), 0.2, True)}),
        (methods.LDA, {"ridge": 0.0}, {}),
        (methods.GDA, {}, {"alpha": ((1e-4, 0.001, 0.01, 0.1, 1, 10, 100, 1000), 10, True)}),
        (methods.GDA, {"alpha": 1.0}, {}),
    ],
)
def test_what_is_left_to_the_data(method: Any, settings: dict[str, Any], grid: dict[str, Any]) -> None:
    found = method(**settings).grid(None)  # which looks at no image where words are left out
    assert {name: (choice.values, choice.usual, choice.open_ended) for name, choice in found.items()} == {
        name: (pytest.approx(values), usual, open_ended) for name, (values, usual, open_ended) in grid.items()
    }
