"""MRL: its losses by length, its start, the cache, what is set at use, and what a shortened feature still knows."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import perturb
from click.testing import CliRunner
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, fit, methods
from adapt.cli import main
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.methods.mrl import principal_components
from adapt.tasks.pairs import Pair

LENGTHS = (8, 16, 32, 64)
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 6, "lr": 0.01, "workers": 0, "augment": "none"}


def wrapped(backbone: Backbone, split: Split, **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(backbone, methods.MRL(**settings), split.class_names)


def cut(features: Tensor, length: int) -> Tensor:
    return F.normalize(features[:, :length].double(), dim=-1)


def test_losses_add_up_over_lengths(open_clip: Backbone, tiny_split: Split, images: Tensor) -> None:
    model = perturb(wrapped(open_clip, tiny_split, nesting=LENGTHS, importance=(1, 2, 3, 4)))
    weight = model.method.weight.double()
    labels = torch.arange(len(images)) % 3
    of_images, of_classes = (
        model.backbone_features(images),
        model.frozen_class_features(["a photo of a {}."]),
    )
    terms = model.losses(model.step(images, labels))[0]
    assert list(terms) == [f"cross_entropy_{length}" for length in LENGTHS]
    for importance, length, term in zip((1, 2, 3, 4), LENGTHS, terms.values(), strict=True):
        rows, columns = (cut(each.double() @ weight, length) for each in (of_images, of_classes))
        expected = importance * F.cross_entropy(open_clip.logit_scale * rows @ columns.T, labels)
        assert term.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("classifier", ["heads", "shared"])
def test_heads_read_shortened_features(open_clip: Backbone, tiny_split: Split, images: Tensor, classifier: Any) -> None:
    model = perturb(wrapped(open_clip, tiny_split, classifier=classifier)).eval()
    method: Any = model.method
    model.set_at_use(dim=16)
    rows = sqrt(16) * cut(model.backbone_features(images) @ method.weight, 16)
    layer = method.nesting_classifier_1 if classifier == "heads" else method.nesting_classifier_0
    expected = rows @ layer.weight[:, :16].double().T + layer.bias.double()
    assert torch.allclose(model(images).double(), expected, atol=1e-4)
    assert model.text_path == "none"
    assert method.per_class


def test_components_are_orthonormal_and_the_first_varies_most() -> None:
    """Both groups count alike, however many rows each has."""
    many = torch.randn(600, 4) * torch.tensor([2.0, 0.1, 1.0, 0.01]) + 5
    few = torch.randn(60, 4) * torch.tensor([0.1, 3.0, 1.0, 0.01]) - 5
    found = principal_components([many, few])
    assert torch.allclose(found.T @ found, torch.eye(4), atol=1e-5)
    assert found.abs().argmax(0).tolist() == [1, 0, 2, 3]


def test_training_begins_with_cosines_as_they_were(open_clip: Backbone, tiny_split: Split, images: Tensor) -> None:
    """At all values, a rotation changes nothing; at few, it keeps more than the first values of CLIP."""
    model = wrapped(open_clip, tiny_split)
    plain = adapt.wrap(open_clip, methods.ZeroShot(), tiny_split.class_names).eval()
    fit(model, tiny_split.train, **SHORT | {"lr": 1e-9, "warmup_epochs": 0}, progress=False)
    assert not torch.allclose(model.method.weight, torch.eye(64), atol=0.1)
    assert torch.allclose(model(images), plain(images), atol=1e-3)


@pytest.mark.parametrize("of_pairs", [False, True])
def test_cached_features_train_as_images_do(
    open_clip: Backbone, tiny_split: Split, of_pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache of its own: features of other batches differ in their last bits, which turn what has no variance."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    items, names = tiny_split.train, tiny_split.class_names
    if of_pairs:
        items = tuple(
            replace(item, label=Pair(), text=f"number {place} of {item.answer}") for place, item in enumerate(items)
        )
        names = ()
    trained = []
    for cache in (True, False):
        torch.manual_seed(0)
        model = adapt.wrap(open_clip, methods.MRL(template="{}"), names)
        fit(model, items, **SHORT, cache=cache, progress=False)
        trained.append(model.method.weight.detach())
    assert not torch.allclose(trained[0], torch.eye(64), atol=0.1)
    assert torch.allclose(*trained, atol=1e-4)


def test_answers_from_the_cache_are_those_of_images(open_clip: Backbone, tiny_split: Split) -> None:
    model = perturb(wrapped(open_clip, tiny_split)).eval()
    model.set_at_use(dim=8)
    cached, direct = (evaluate(model, tiny_split.test, cache=cache, workers=0) for cache in (True, False))
    assert cached.confidence == pytest.approx(direct.confidence, abs=1e-5)
    assert cached.predicted == direct.predicted
    whole = perturb(wrapped(open_clip, tiny_split)).eval()
    assert evaluate(whole, tiny_split.test, workers=0).confidence != pytest.approx(cached.confidence, abs=1e-4)


def test_wrong_lengths_are_refused_by_name(open_clip: Backbone, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match=r"nesting is \[16, 8\]; expected ascending lengths"):
        methods.MRL(nesting=(16, 8))
    with pytest.raises(AdaptError, match="importance needs a weight for each length"):
        methods.MRL(importance=(1.0,))
    with pytest.raises(
        AdaptError, match=r"nesting ends with 32, but a feature of .* has 64 values: let method.nesting"
    ):
        wrapped(open_clip, tiny_split, nesting=(8, 32))
    with pytest.raises(AdaptError, match="the classifier heads needs classes, but the data has none"):
        adapt.wrap(open_clip, methods.MRL(classifier="heads"), ())
    with pytest.raises(AdaptError, match="dim is 65; expected at most 64, the values of a feature"):
        wrapped(open_clip, tiny_split).set_at_use(dim=65)
    with pytest.raises(AdaptError, match="dim is 9; expected one of 8, 16, 32, 64, which have a head"):
        wrapped(open_clip, tiny_split, classifier="heads").set_at_use(dim=9)


def test_a_refused_length_is_not_taken(open_clip: Backbone, tiny_split: Split, images: Tensor) -> None:
    model = wrapped(open_clip, tiny_split, classifier="heads").eval()
    before = model(images)
    with pytest.raises(AdaptError):
        model.set_at_use(dim=9)
    assert torch.equal(model(images), before)


@pytest.mark.full
def test_several_labels_are_compared_by_length_too(tmp_path: Path) -> None:
    asked = ["train", "mrl", "--data", "emoji-labels@fluent-3d", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*asked, "--set", "train.iterations=3", "--set", "train.epochs=null"])
    assert result.exit_code == 0, result.output
    assert "by dim     8: " in result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on the bundled drawings."""
    out = tmp_path_factory.mktemp("mrl") / "run"
    result = CliRunner().invoke(main, ["train", "mrl", "--data", "emoji", "--seed", "1", "--out", str(out), "--plot"])
    assert result.exit_code == 0, result.output
    assert "by dim     8: " in result.output
    return out


def accuracy(model: Any, dim: int, items: Any) -> float:
    model.set_at_use(dim=dim)
    return 100 * evaluate(model, items).accuracy


@pytest.mark.full
def test_short_features_of_drawings_know_their_class(run: Path) -> None:
    """Bars: 32 of 256 values within two points of all, and 16 at least five above the first 16 of the backbone."""
    split, model = adapt.data.load("emoji"), adapt.load(run)
    plain = adapt.wrap(model.backbone, methods.MRL(start="identity"), split.class_names).eval()
    assert accuracy(model, 32, split.test) > accuracy(model, 256, split.test) - 2
    assert accuracy(model, 16, split.test) > accuracy(plain, 16, split.test) + 5


def test_what_is_said_by_length_is_what_the_model_answers(run: Path) -> None:
    metrics, model = json.loads((run / "metrics.json").read_text()), adapt.load(run)
    held_out = adapt.data.load("emoji").few_shot(shots=16, seed=1).val
    assert metrics["dim_items"] == len(held_out)
    assert list(metrics["dim"]) == ["8", "16", "32", "64", "128", "256"]
    for dim, share in metrics["dim"].items():
        assert accuracy(model, int(dim), held_out) == pytest.approx(100 * share)
    assert metrics["dim"]["8"] < metrics["dim"]["256"] - 0.1
    assert (run / "dim.png").read_bytes().startswith(b"\x89PNG")
